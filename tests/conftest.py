"""Settings of the whole test run: no network, no accounts, and no deadlines on a busy machine."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for `research`; behind an installed package

# before anything imports the libraries that read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_DIR", tempfile.mkdtemp())  # read once, at the first run
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; SAELens imports triton

settings.register_profile("default", deadline=None, derandomize=True)  # the same in every run
settings.load_profile("default")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        """\
architecture: matryoshka
d_in: 16
d_sae: 64
k: 4
model_name: gpt2
hook_name: blocks.0.hook_resid_post
dataset_path: some/dataset
verbose: false
"""
    )
    return path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that were handed to the runner, which does nothing else."""
    configs: list[Any] = []

    class Runner:
        def __init__(self, config: Any):
            configs.append(config)

        def run(self) -> None:
            pass

    monkeypatch.setattr("sae_lens_matryoshka.training.runner.MatryoshkaSAETrainingRunner", Runner)
    return configs


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 600 kB of the real texts."""
    from sae_lens_matryoshka.demo.text import data_folder

    folder = tmp_path_factory.mktemp("text")
    for name in ("105_click_bait", "26_headline_isfrontpage", "47_reasoning_tf"):
        shutil.copy(data_folder() / f"{name}.csv.zst", folder)
    return folder
