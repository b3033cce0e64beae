"""Settings of the whole test run: no network, no accounts, and no deadlines on a busy machine."""

import os
import tempfile
from pathlib import Path
from typing import Any

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

    monkeypatch.setattr("sae_lens_matryoshka.runner.MatryoshkaSAETrainingRunner", Runner)
    return configs
