"""Result files: SAEBench's own and published ones."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sae_lens_matryoshka.atomic_files import write_json
from sae_lens_matryoshka.bench.config import PublishedSource, checked_config
from sae_lens_matryoshka.bench.jobs.plan import Item, Job
from sae_lens_matryoshka.bench.jobs.stored_results import (
    is_finished,
    other_settings,
    published_outcomes,
    read_metrics,
    read_status,
    write_status,
)
from sae_lens_matryoshka.settings.yaml_file import ConfigError


def result(eval_type: str, **categories: dict[str, Any]) -> dict[str, Any]:
    return {
        "eval_type_id": eval_type,
        "eval_result_metrics": categories,
        "eval_result_details": [{"first_letter": "a"}],
        "sae_cfg_dict": {"d_sae": 65536},
    }


ABSORPTION = result(
    "absorption_first_letter",
    mean={"mean_absorption_fraction_score": 0.05, "mean_full_absorption_score": 0.01},
)
CORE = result(
    "core",
    sparsity={"l0": 41.5, "l1": -1},
    reconstruction_quality={"explained_variance": 0.7},
    model_performance_preservation={"ce_loss_score": 0.98},
)


def write(folder: Path, name: str, content: Any) -> Path:
    write_json(folder / name, content)
    return folder / name


def test_metrics_are_read_over_all_categories(tmp_path: Path):
    metrics, details = read_metrics(write(tmp_path, "a.json", ABSORPTION))
    assert metrics == ABSORPTION["eval_result_metrics"]["mean"]
    assert details == [{"first_letter": "a"}]
    core, _ = read_metrics(write(tmp_path, "c.json", CORE))
    assert core["ce_loss_score"] == 0.98
    assert math.isnan(core["l1"])  # core writes -1 for NaN


def test_nan_and_missing_values(tmp_path: Path):
    content = result("tpp", tpp_metrics={"a": math.nan, "b": None, "c": 1})
    metrics, _ = read_metrics(write(tmp_path, "t.json", content))
    assert math.isnan(metrics["a"])
    assert "b" not in metrics
    assert metrics["c"] == 1


def test_a_published_sae_stands_with_its_l0_and_fvu(tmp_path: Path):
    files = [write(tmp_path, "a.json", ABSORPTION), write(tmp_path, "c.json", CORE)]
    paper = PublishedSource(name="paper", files=files, fvu=0.3)
    found = {o.eval: o for o in published_outcomes(paper)}
    assert set(found) == {"fidelity", "absorption", "core"}
    assert found["fidelity"].metrics == pytest.approx({"l0": 41.5, "fvu": 0.3})
    assert found["absorption"].metrics["mean_absorption_fraction_score"] == 0.05
    assert all(o.published and o.seed is None and o.width == 65536 for o in found.values())
    source = PublishedSource(name="paper", files=files[:1], l0=40, fvu=0.28)
    assert next(iter(published_outcomes(source))).metrics == {"l0": 40, "fvu": 0.28}


def test_what_is_no_published_result_is_refused(tmp_path: Path):
    alone = PublishedSource(name="paper", files=[write(tmp_path, "a.json", ABSORPTION)])
    with pytest.raises(ConfigError, match="'paper': there is no comparison without L0 and FVU"):
        list(published_outcomes(alone))
    for content in ([], {"eval_type_id": "x"}, "text"):
        source = PublishedSource(name="p", files=[write(tmp_path, "b.json", content)], l0=1, fvu=1)
        with pytest.raises(ConfigError, match="b.json is none of SAEBench's result files"):
            list(published_outcomes(source))
    twice = PublishedSource(name="p", files=[alone.files[0]] * 2, l0=1, fvu=1)
    with pytest.raises(ConfigError, match="a second result of absorption"):
        list(published_outcomes(twice))
    core = PublishedSource(name="p", files=[write(tmp_path, "c.json", CORE)])
    with pytest.raises(ConfigError, match="core's own explained variance is wrong"):
        list(published_outcomes(core))
    missing = PublishedSource(name="p", files=[tmp_path / "nowhere.json"], l0=1, fvu=1)
    with pytest.raises(ConfigError, match="nowhere.json"):
        list(published_outcomes(missing))


def test_only_lasting_ends_are_kept(tmp_path: Path):
    item = Item(0, "a", 0, 1, 4, "f", str(tmp_path / "item"))
    assert read_status(item) is None
    write_json(tmp_path / "item" / "eval_results.json", ABSORPTION)
    for status, lasts in [
        ("done", True),
        ("not applicable", True),
        ("not measurable", True),
        ("failed", False),
    ]:
        write_status(item, status, "why", 1.5)
        assert is_finished(item) is lasts
        assert read_status(item) == {"status": status, "reason": "why", "seconds": 1.5}
    assert len(list((tmp_path / "item").iterdir())) == 2  # nothing half written stays


def test_a_file_is_written_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path, "a.json", {"old": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_bytes()) == {"old": 1}


def test_published_settings_that_differ_are_told(settings: dict[str, Any], tmp_path: Path):
    theirs = {"k_values": [1], "probe_epochs": 20, "random_seed": 42, "model_name": "gemma"}
    pairs = {"k_values": [1], "probe_epochs": 5, "random_seed": 0, "model_name": "demo"}
    path = write(tmp_path, "a.json", {**ABSORPTION, "eval_config": theirs})
    published = [{"name": "paper", "files": [str(path)], "l0": 40, "fvu": 0.3}]
    config = checked_config({**settings, "published": published})
    item = Item(0, "a", 0, 1, 4, "f", str(tmp_path / "item"))
    jobs = [Job("absorption", 0, {}, "key", "work", [item])]
    assert other_settings(config, jobs) == ""  # nothing to compare with yet
    write_json(tmp_path / "item" / "eval_results.json", {**ABSORPTION, "eval_config": pairs})
    write_status(item, "done")
    expected = "- paper, absorption: probe_epochs 20 (here 5); model_name gemma (here demo)\n"
    assert other_settings(config, jobs).endswith(expected)
    write_json(tmp_path / "item" / "eval_results.json", {**ABSORPTION, "eval_config": theirs})
    assert other_settings(config, jobs) == ""


def test_broken_leftovers_are_run_again(tmp_path: Path):
    item = Item(0, "a", 0, 1, 4, "f", str(tmp_path))
    (tmp_path / "status.json").write_text('{"status": "do')
    assert not is_finished(item)
    write_status(item, "done")
    assert not is_finished(item)  # its result is missing
    write_json(tmp_path / "eval_results.json", ABSORPTION)
    assert is_finished(item)
