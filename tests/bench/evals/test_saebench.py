"""What the runners keep on disk between SAEs."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_helpers import random_sae

from sae_lens_matryoshka.bench.evals import saebench as runners
from sae_lens_matryoshka.bench.evals.base import NotMeasurable


def test_stored_activations_of_a_model_in_bfloat16_can_be_read_by_numpy(tmp_path: Path):
    x = torch.randn(3, 4).bfloat16()
    (tmp_path / "inner").mkdir()
    torch.save(x, tmp_path / "inner" / "a.pt")
    runners.make_float32(tmp_path)
    stored = torch.load(tmp_path / "inner" / "a.pt")
    assert stored.numpy().shape == (3, 4)
    assert torch.equal(stored, x.float())
    assert [path.name for path in tmp_path.rglob("*.p*")] == ["a.pt"]


def test_a_worker_killed_while_it_writes_leaves_nothing_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class KilledError(Exception):
        pass

    def half(_: torch.Tensor, path: Path) -> None:
        path.write_bytes(b"half")
        raise KilledError

    runner: Any = SimpleNamespace(
        cache=tmp_path,
        given={"dataset": "a/b"},
        model=None,
        batch_size=1,
        device="cpu",
        dtype="float32",
    )
    monkeypatch.setattr(runners, "activations", lambda *_: torch.randn(20, 256))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", half)
        with pytest.raises(KilledError):
            runners.FidelityRunner.run(runner, random_sae(), "a", tmp_path)
    runners.FidelityRunner.run(runner, random_sae(), "a", tmp_path)
    assert (tmp_path / "a_eval_results.json").exists()


@pytest.mark.parametrize("x", [torch.zeros(0, 256), torch.randn(1, 256), torch.ones(9, 256)])
def test_a_text_without_variance_is_not_measurable(
    x: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runner: Any = SimpleNamespace(
        cache=tmp_path,
        given={"dataset": "a/b"},
        model=None,
        batch_size=1,
        device="cpu",
        dtype="float32",
    )
    monkeypatch.setattr(runners, "activations", lambda *_: x)
    with pytest.raises(NotMeasurable, match=f"gives {len(x)} activations"):
        runners.FidelityRunner.run(runner, random_sae(), "a", tmp_path)


def test_notes_on_scr_come_from_the_probes_that_saebench_kept(tmp_path: Path):
    biased = "male_professor / female_nurse probe on"
    accuracies = {
        "professor / nurse": 0.7,
        "male / female": 0.9,
        f"{biased} professor / nurse data": 0.7,
        f"{biased} male / female data": 0.8,
    }
    folder = tmp_path / "artifacts" / "scr" / "demo" / "hook"
    folder.mkdir(parents=True)
    with (folder / "a_b_probes.pkl").open("wb") as file:
        pickle.dump({"llm_probes": {}, "llm_test_accuracies": accuracies}, file)
    runner: Any = SimpleNamespace(
        name="scr", cache=tmp_path, eval_config=lambda: SimpleNamespace(n_values=[2])
    )
    notes = runners.DatasetRunner.notes(runner)
    assert notes.keys() == {"scr_metric_threshold_2"}
    assert "0 is SAEBench's placeholder for a_b" in notes["scr_metric_threshold_2"]
    runner.name = "tpp"
    assert runners.DatasetRunner.notes(runner) == {}
