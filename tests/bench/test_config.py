"""What the YAML file may say, and what an error says of the rest."""

from pathlib import Path
from typing import Any

import pytest

from sae_lens_matryoshka.bench.config import BenchConfig, checked_config
from sae_lens_matryoshka.settings.yaml_file import ConfigError, parse_override, read_mapping


def test_a_minimal_config_has_defaults(settings: dict[str, Any]):
    del settings["seeds"], settings["data"]
    config = checked_config(settings)
    assert config.seeds == [0, 1, 2]
    assert config.data == "hub"
    assert config.jobs == 1
    assert not config.upstream_defaults
    assert not config.is_offline
    assert config.saes[0].levels == "all"


def test_local_parts_make_it_offline(settings: dict[str, Any]):
    assert checked_config(settings).is_offline
    settings["saes"].append({"name": "b", "repo": "user/repo", "id": "x"})
    assert not checked_config(settings).is_offline


def test_a_worker_reads_what_it_is_sent(settings: dict[str, Any]):
    settings["saes"].append({"name": "b", "demo": "best"})
    settings["saes"].append({"name": "c", "demo": "best", "seed": 1})
    config = checked_config(settings)
    assert BenchConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hok_name", "x", "hok_name: unknown key. Did you mean 'hook_name'?"),
        ("model.nme", "x", "model.nme: unknown key. Did you mean 'name'?"),
        ("saes.0.foldr", "x", "saes.0.foldr: unknown key. Did you mean 'folder'?"),
        ("evals.absorbtion", {}, "no such eval. Did you mean 'absorption'?"),
        ("model.dtype", "float16", "overflow in float16 and give garbage"),
        ("model.folder", "x", "either a name or a folder"),
        ("saes.0.repo", "user/repo", "exactly one of folder, repo, release, demo"),
        ("saes.0.id", "x", "id goes with a repo or a release"),
        ("saes.0.seed", 1, "seed goes with demo"),
        ("saes.0.seed", 0, "seed goes with demo"),
        ("saes.0.levels", "some", "saes.0.levels"),
        ("saes.0.name", "a/b", "saes.0.name"),
        ("seeds", [1, 1], r"seeds: \[1, 1\] holds a seed twice"),
        ("seeds", [-1], "seeds.0: .*greater than or equal to 0"),
        ("seeds", [2**32], "seeds.0: .*less than 4294967296"),
        ("quick", 1, "quick: Input should be a valid boolean"),
        ("evals.core", False, "evals.core: "),
        ("model.prepend_bos", True, "prepend_bos has no effect on the demo model"),
        ("seeds", [], "seeds: "),
        ("jobs", 0, "jobs: "),
        ("baseline", "nobody", "baseline: 'nobody' is none of"),
        ("text", None, "text: "),
        ("kind", "toy", "kind: "),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], key: str, value: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        checked_config(settings, "a.yaml", [(key, value)])


def test_all_wrong_keys_are_named_at_once(settings: dict[str, Any]):
    with pytest.raises(ConfigError) as error:
        checked_config({**settings, "sedes": 1, "modle": 2}, "a.yaml")
    assert "a.yaml cannot be used" in str(error.value)
    assert "sedes" in str(error.value)
    assert "modle" in str(error.value)


def test_missing_keys_are_named(settings: dict[str, Any]):
    del settings["hook_name"], settings["text"]
    with pytest.raises(ConfigError, match="hook_name: Field required\n.*text: Field required"):
        checked_config(settings)


def test_names_must_differ(settings: dict[str, Any]):
    settings["saes"] *= 2
    with pytest.raises(ConfigError, match="'nested'.* repeat"):
        checked_config(settings)


def test_a_demo_sae_needs_the_demo_model(settings: dict[str, Any], tmp_path: Path):
    settings["saes"] = [{"name": "a", "demo": "matryoshka"}]
    settings["model"] = {"folder": str(tmp_path)}
    with pytest.raises(ConfigError, match="model must be demo too"):
        checked_config(settings)


def test_quick_settings_apply_and_overrides_win(settings: dict[str, Any]):
    settings["when_quick"] = {"seeds": [7], "text.sequences": 3}
    assert checked_config(settings).seeds == [0]
    quick = checked_config(settings, "x", [("quick", True)])
    assert quick.seeds == [7]
    assert quick.text.sequences == 3
    assert quick.text.dataset == "demo/heldout_text"
    both = checked_config(settings, "x", [("seeds", [9]), ("quick", True)])
    assert both.seeds == [9]
    with pytest.raises(ConfigError, match="Set what it stands for: text.sequences=16"):
        checked_config(settings, "x", [("when_quick.text.sequences", 16), ("quick", True)])


def test_settings_stay_as_they_are(settings: dict[str, Any]):
    before = repr(settings)
    checked_config(settings, "x", [("saes.0.levels", [0]), ("evals.core", None)])
    assert repr(settings) == before


def test_an_override_through_a_value_is_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="hook_name is .* and has no keys"):
        checked_config(settings, "x", [("hook_name.layer", 1)])
    with pytest.raises(ConfigError, match="'5' is no entry of a list of 1"):
        checked_config(settings, "x", [("saes.5.levels", 1)])


def test_paths_are_absolute(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    settings["output"] = "some/where"
    assert checked_config(settings).output == Path("/some/where")


def test_yaml_is_read_with_its_lines(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: 1}\nc: [1, 3e-4]\n")
    assert read_mapping(path) == {"a": {"b": 1}, "c": [1, 3e-4]}
    path.write_text("a:\n  b: 1\n  b: 2\n")
    with pytest.raises(ConfigError, match="line 3: b was given before, in line 2"):
        read_mapping(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="not a list"):
        read_mapping(path)


def test_overrides_are_yaml():
    assert parse_override("seeds=[0, 1]") == ("seeds", [0, 1])
    assert parse_override("quick=true") == ("quick", True)
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_override("seeds")
