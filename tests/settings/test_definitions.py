"""What is read from sources against what is imported: SAELens of any version must be understood."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sae_lens_matryoshka
from sae_lens_matryoshka.settings.definitions import Definitions, NeedsImport

PACKAGE = Path(sae_lens_matryoshka.__file__).parent
DESCRIBE = """
import dataclasses, json, sys, typing
from sae_lens_matryoshka.settings.definitions import Definitions

def described(config_class):
    hints = typing.get_type_hints(config_class)
    missing = dataclasses.MISSING
    return {
        f.name: [str(hints[f.name]), None if f.default is missing else repr(f.default), f.init]
        for f in dataclasses.fields(config_class)
    }

definitions = Definitions()
registry = definitions.get("sae_lens.registry", "SAE_TRAINING_CLASS_REGISTRY")
found = {name: described(config_class) for name, (_, config_class) in sorted(registry.items())}
for module, name in (
    ("sae_lens.config", "LanguageModelSAERunnerConfig"),
    ("sae_lens.config", "LoggingConfig"),
    ("sae_lens.config", "SAETrainerConfig"),
    ("sae_lens_matryoshka.training.settings.runner_config", "LanguageModelSAERunnerConfig"),
):
    found[f"{module}.{name}"] = described(definitions.get(module, name))
found["models"] = definitions.get("transformer_lens.loading_from_pretrained", "make_model_alias_map")()
print(json.dumps([found, "torch" in sys.modules or "sae_lens" in sys.modules]))
"""


def test_read_as_imported(capsys: pytest.CaptureFixture[str]):
    # our command line does not import SAELens by itself
    as_command = "import sys; sys.argv[0] = 'sae-lens-matryoshka'\n"
    done = subprocess.run(
        [sys.executable, "-c", as_command + DESCRIBE],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read, is_imported = json.loads(done.stdout)
    assert not is_imported
    assert "matryoshka" in read

    exec(DESCRIBE, {})  # here SAELens is imported
    imported, is_imported = json.loads(capsys.readouterr().out)
    assert is_imported
    assert read == imported


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sae_lens_matryoshka.training.settings.from_file", "checked_config"),
        ("sae_lens_matryoshka.training.runner", "check_before_loading"),
        ("sae_lens_matryoshka.training.runner", "check_sources"),
        ("sae_lens_matryoshka.bench.jobs.suite", "check_input"),
        ("sae_lens_matryoshka.hub.publishing", "check_request"),
        ("sae_lens_matryoshka.convert.convert", "check_request"),
        ("research.ground_truth.toy_bench", "ToyTreeConfig"),
        ("research.ground_truth.synthetic_config", "SyntheticConfig"),
        ("sae_lens.llm_sae_training_runner", "_parse_cfg_args"),
    ],
)
def test_what_the_commands_use_exists(module: str, name: str):
    assert Definitions().get(module, name).__name__ == name


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Definitions:
    """Definitions of a package of the test's own."""
    folder = tmp_path / "some_package"
    (folder / "below").mkdir(parents=True)
    (folder / "__init__.py").write_text("from .first import table as shown\n")
    (folder / "below" / "__init__.py").write_text("DEPTH = 2\n")
    (folder / "first.py").write_text(
        """\
import slow_package
from slow_package import decorator, Base
from .below import DEPTH
from some_package import below

raise RuntimeError("imported")
table = {"a": slow_package.number, "b": DEPTH}
def even(n: "Unknown") -> slow_package.Thing:
    return n == 0 or odd(n - 1)
def odd(n):
    return n != 0 and even(n - 1)
@decorator()
def decorated(): ...
class Derived(Base): ...
def uses(what):
    from slow_package import calculated
    from some_package.below import DEPTH as depth
    return {"depth": lambda: depth + below.DEPTH, "decorated": decorated, "derived": Derived,
        "calculated": calculated, "truth": lambda: bool(table["a"])}[what]()
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sae_lens_matryoshka.settings.definitions.PACKAGES", ("some_package",))
    monkeypatch.delitem(sys.modules, "sae_lens")
    return Definitions()


def test_only_what_is_used_is_run(package: Definitions):
    assert package.get("some_package.first", "even")(4)
    assert package.get("some_package", "shown")["b"] == 2
    assert package.get("some_package.first", "uses")("depth") == 4
    assert "some_package" not in sys.modules


@pytest.mark.parametrize("what", ["decorated", "derived", "calculated", "truth"])
def test_slow_packages_cannot_be_used(package: Definitions, what: str):
    with pytest.raises(NeedsImport):
        package.get("some_package.first", "uses")(what)


def test_what_does_not_exist(package: Definitions):
    for module, name in (("some_package.first", "no"), ("some_package.no", "no")):
        with pytest.raises(NeedsImport):
            package.get(module, name)
