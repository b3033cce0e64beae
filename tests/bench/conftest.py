"""SAEs, a language model and data small enough for SAEBench to take seconds."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import HOOK, WIDTHS, random_sae

if importlib.util.find_spec("sae_bench") is None:
    # the extra [bench] pins numpy < 2 and datasets < 4, so it has an environment of its own
    collect_ignore_glob = ["test_*.py", "*/test_*.py"]


@pytest.fixture(scope="session")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nested SAE as training saves it."""
    folder = tmp_path_factory.mktemp("sae") / "nested"
    random_sae(widths=WIDTHS).save_model(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data sets."""
    from sae_lens_matryoshka.demo.labelled import write_data_sets

    folder = tmp_path_factory.mktemp("data")
    write_data_sets(folder)
    return folder


@pytest.fixture
def settings(sae_folder: Path, data_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A benchmark as a YAML file would say it; evals are each test's own."""
    return {
        "model": {"name": "demo"},
        "hook_name": HOOK,
        "saes": [{"name": "nested", "folder": str(sae_folder)}],
        "evals": {"core": {"dataset": "demo/heldout_text"}},
        "seeds": [0],
        "text": {"dataset": "demo/heldout_text", "context_size": 64, "sequences": 16},
        "data": str(data_folder),
        "output": str(tmp_path / "out"),
    }
