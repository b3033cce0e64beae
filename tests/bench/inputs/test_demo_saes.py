"""The SAEs that the offline benchmark trains for itself, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from sae_lens_matryoshka.bench.inputs.demo_saes import train_sae


@pytest.mark.slow
def test_training_does_not_outlive_who_started_it(tmp_path: Path):
    """Its standard input is the other end of a pipe that the benchmark holds."""
    command = [sys.executable, "-m", "sae_lens_matryoshka.bench.inputs.demo_saes", "batchtopk"]
    child = subprocess.Popen([*command, str(tmp_path), "0"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=300) == 1
    assert not (tmp_path / "cfg.json").exists()


@pytest.mark.slow
def test_the_seed_decides(tmp_path: Path):
    weights: list[torch.Tensor] = []
    for name, seed in (("first", 1), ("same", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        train_sae("best", tmp_path / name, seed, small=True)
        weights.append(SAE.load_from_disk(tmp_path / name).W_dec)
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], atol=0.1)
