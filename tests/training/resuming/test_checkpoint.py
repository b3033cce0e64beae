import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runner_helpers import (
    CONTEXT,
    TinyModel,
    call_at_step,
    interrupted,
    make_runner,
    options,
    save_cached_activations,
    text_dataset,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import SAE, LanguageModelSAETrainingRunner

from sae_lens_matryoshka import (
    LanguageModelSAERunnerConfig,
    MatryoshkaSAE,
    MatryoshkaSAETrainingRunner,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
    engine,
)
from sae_lens_matryoshka.loading.saved_folder import open_folder
from sae_lens_matryoshka.training.resuming.checkpoint import (
    check_writable,
    rng_state,
    set_rng_state,
)


def stopped(runner: MatryoshkaSAETrainingRunner, step: int) -> Path:
    return Path(interrupted(runner, step))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def trainer_state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "trainer_state.pt")


# ---- where a run writes to


@pytest.mark.parametrize("option", ["output_path", "checkpoint_path"])
def test_unwritable_path_is_found_before_the_model_is_loaded(tmp_path: Path, option: str):
    (tmp_path / "file").write_text("in the way")
    cfg = LanguageModelSAERunnerConfig(
        **options(tmp_path, model_name="no/such-model") | {option: str(tmp_path / "file" / "x")}
    )
    with pytest.raises(OSError, match=f"{option}='.*file/x.*' cannot be written: .*no folder"):
        MatryoshkaSAETrainingRunner(cfg)


def test_check_writable_leaves_no_trace(tmp_path: Path):
    check_writable("output_path", str(tmp_path / "a" / "b"))
    check_writable("output_path", None)
    assert os.listdir(tmp_path) == []


# ---- what a checkpoint holds


def test_checkpoint_is_complete_and_safe_to_load(tmp_path: Path):
    folder = stopped(make_runner(tmp_path, n_checkpoints=1), step=20)
    for each in (folder, folder.with_name("416")):
        assert sorted(os.listdir(each)) == [
            "activation_scaler.json",
            "activations_store_state.safetensors",
            "cfg.json",
            "matryoshka_state.pt",
            "runner_cfg.json",
            "sae_weights.safetensors",
            "sparsity.safetensors",
            "trainer_state.pt",
        ]
        torch.load(each / "matryoshka_state.pt", weights_only=True)
    assert sorted(os.listdir(folder.parent)) == ["416", "640"]  # nothing half-written beside them
    assert trainer_state(folder)["n_training_steps"] == 20
    cfg = json.loads((folder / "runner_cfg.json").read_text())
    resumable = LanguageModelSAERunnerConfig.from_dict(cfg)
    assert resumable.checkpoint_path == str(folder.parent)


def test_scores_are_not_rounded_with_the_weights(tmp_path: Path):
    """SAELens reads all in the SAE's data type; bfloat16 would tie many scores and order others' latents."""
    sae = MatryoshkaTrainingSAE(
        MatryoshkaTrainingSAEConfig(
            d_in=4,
            d_sae=64,
            k=2,
            matryoshka_widths=[8, 64],
            latent_order="frequency",
            dtype="bfloat16",
        )
    )
    sae.latent_scores = torch.linspace(0.5, 0.501, 64)
    sae.save_model(tmp_path)
    opened = open_folder(tmp_path)
    torch.testing.assert_close(opened.W_dec.data[0], _unit(sae.W_dec[-1]))
    torch.testing.assert_close(opened.W_dec.data[63], _unit(sae.W_dec[0]))


def _unit(row: torch.Tensor) -> torch.Tensor:
    return row.data / row.data.norm()


def test_a_resumed_engine_takes_the_same_paths(tmp_path: Path):
    with engine.using("sparse"):
        first = make_runner(tmp_path)
        folder = stopped(first, step=10)
    second = make_runner(tmp_path, resume_from_checkpoint=str(folder))
    assert second.sae.engine_memory == [(0, 0)]
    second._resume_data(folder)
    assert second.sae.engine_memory == first.sae.engine_memory
    assert second.sae.engine_memory[0][0] > 0
    state = torch.load(folder / "matryoshka_state.pt", weights_only=True)
    del state["engines"]  # as commits before it was kept
    torch.save(state, folder / "matryoshka_state.pt")
    assert open_folder(folder).cfg.d_sae == second.sae.cfg.d_sae


def test_checkpoint_holds_no_more_activations_than_are_left(tmp_path: Path):
    # slices saved with the storage behind them would be larger
    runner = make_runner(tmp_path, n_batches_in_buffer=400)
    folder = stopped(runner, step=10)
    state = torch.load(folder / "matryoshka_state.pt", weights_only=True)
    n_loaded = len(runner.model.seen) * CONTEXT
    n_left = len(state["store"]["to_serve"]) + len(state["store"]["kept"])
    assert n_left == n_loaded - 10 * 32
    n_kept_for_threshold = sum(map(len, state["recent_activations"]))
    assert n_kept_for_threshold == 10 * 32
    n_bytes = (n_left + n_kept_for_threshold) * 16 * 4
    assert n_bytes < (folder / "matryoshka_state.pt").stat().st_size < n_bytes + 40_000


def test_batches_that_a_prefetcher_holds_are_saved(tmp_path: Path):
    store = make_runner(tmp_path, prefetch_llm_batches=3)._store
    # training has the first, the queue three, the prefetcher's hand one
    served = [next(store) for _ in range(5)]
    store.note_taken(served[0])
    state = store.resume_state()
    assert torch.equal(state["to_serve"][: 4 * 32], torch.cat(served[1:]))
    store.note_taken(served[1])
    assert torch.equal(store.resume_state()["to_serve"], state["to_serve"][32:])


def test_rng_state_is_restored_in_the_middle_of_a_pair():
    def draw() -> list[float]:
        return [torch.rand(1).item(), np.random.randn(), np.random.rand(), random.gauss(0, 1)]

    draw()  # numpy and Python now hold the second half of a pair of normal numbers
    state = rng_state()
    expected = [draw() for _ in range(3)]
    draw()
    set_rng_state(state)
    assert [draw() for _ in range(3)] == expected


# ---- SAELens's checkpoints and ours


def stock_runner(
    folder: Path, dataset: Any = None, **changes: Any
) -> tuple[LanguageModelSAETrainingRunner, list[int]]:
    """SAELens's runner, and how many sequences its model had seen at each of its checkpoints."""

    class Recording(LanguageModelSAETrainingRunner):
        def save_checkpoint(self, checkpoint_path: Path | None) -> None:
            n_seen.append(len(self.model.seen))  # type: ignore
            super().save_checkpoint(checkpoint_path)

    n_seen: list[int] = []
    torch.manual_seed(0)
    cfg = LanguageModelSAERunnerConfig(**options(folder, **changes))
    dataset = token_dataset() if dataset is None else dataset
    return Recording(cfg, override_model=TinyModel(), override_dataset=dataset), n_seen


def test_stock_resumes_from_ours(tmp_path: Path):
    folder = stopped(make_runner(tmp_path), step=10)
    runner, _ = stock_runner(
        tmp_path, resume_from_checkpoint=str(folder), save_final_checkpoint=True
    )
    runner.run()
    final = Path(runner.cfg.checkpoint_path or "") / "final_768"
    assert trainer_state(final)["n_training_steps"] == 24
    assert trainer_state(final)["lr_scheduler"]["last_epoch"] == 24
    SAE.load_from_disk(tmp_path / "output")


@pytest.mark.parametrize("source", ["tokens", "text"])
def test_ours_resumes_from_stock(tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture):
    dataset = token_dataset() if source == "tokens" else text_dataset()
    stock, n_seen = stock_runner(tmp_path, dataset, n_checkpoints=5)  # thresholds 128, 256, ...
    stock.run()
    folder = Path(stock.cfg.checkpoint_path or "") / "416"
    assert trainer_state(folder)["n_training_steps"] == 12  # 13 steps are done: SAELens's defect
    caplog.clear()
    ours = make_runner(
        tmp_path,
        dataset,
        n_checkpoints=5,
        resume_from_checkpoint=str(folder),
        save_final_checkpoint=True,
    )
    ours.run()
    made = ours.checkpoint_path
    assert made is not None
    assert sorted(os.listdir(made)) == ["544", "672", "final_768"]  # 128, 256, 384 are passed
    assert trainer_state(made / "544")["n_training_steps"] == 17
    assert trainer_state(made / "final_768")["n_training_steps"] == 24
    whole_stream = stock.model.seen
    trained, resumed_at = n_seen[2], whole_stream.index(ours.model.seen[0])
    assert not set(whole_stream[:trained]) & set(ours.model.seen)
    # one row of the text has 15 to 16 sequences; what the buffer held was drawn before
    assert resumed_at - trained <= (0 if source == "tokens" else 16)
    assert any("does not save its mixing buffer: skipped" in text for text in caplog.messages)


def test_resuming_says_what_was_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = make_runner(tmp_path)
    folder = stopped(first, step=10)
    n_left = len(first.model.seen) * CONTEXT - 10 * 32
    with caplog.at_level(logging.INFO, "sae_lens"):
        make_runner(tmp_path, resume_from_checkpoint=str(folder)).run()
    (message,) = [text for text in caplog.messages if "Resuming the data" in text]
    assert f"skipped the {len(first.model.seen)} token sequences" in message
    assert f"{n_left} tokens that are not trained on yet" in message


def test_stock_checkpoint_of_cached_activations_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cached = {
        "use_cached_activations": True,
        "cached_activations_path": save_cached_activations(tmp_path),
    }
    stock, _ = stock_runner(tmp_path, n_checkpoints=1, **cached)
    stock.run()
    folder = Path(stock.cfg.checkpoint_path or "") / "416"
    make_runner(tmp_path, resume_from_checkpoint=str(folder), **cached).run()
    assert any("from the start again" in text for text in caplog.messages)


# ---- checkpoints that cannot be resumed from


def test_one_from_the_middle_of_annealing_opens_with_the_threshold_of_k(tmp_path: Path):
    runner = make_runner(tmp_path, k_start=12, k_anneal_steps=24, latent_order="frequency")
    folder = stopped(runner, step=8)
    assert runner.sae.k_now > 8
    x = torch.cat(runner.sae.recent_activations.batches())
    opened = open_folder(folder)
    assert (opened.encode(x) > 0).sum() == 3 * len(x)
    for again in (MatryoshkaSAE.load_from_disk(folder), MatryoshkaSAE.from_pretrained(str(folder))):
        assert torch.equal(again.sae.encode(x), opened.encode(x))
        assert again.widths == tuple(runner.sae.cfg.widths)


def test_one_without_its_activations(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = stopped(make_runner(tmp_path, k_start=12, k_anneal_steps=24), step=8)
    threshold = open_folder(folder).threshold
    (folder / "matryoshka_state.pt").unlink()
    torch.testing.assert_close(open_folder(folder).threshold, threshold)
    assert "still being annealed" not in caplog.text
    cfg = json.loads((folder / "cfg.json").read_text())
    del cfg["metadata"]["matryoshka_counted_threshold"]  # as earlier versions saved it
    (folder / "cfg.json").write_text(json.dumps(cfg))
    open_folder(folder)
    assert "k_start=12 was still being annealed" in caplog.text


def refuses(folder: Path, error: type[Exception], says: str, **changes: Any) -> None:
    """A run that would fail to load its model is refused before that, for its checkpoint."""
    cfg = LanguageModelSAERunnerConfig(**options(folder, model_name="no/such-model", **changes))
    before = contents(folder)
    with pytest.raises(error, match=says):
        MatryoshkaSAETrainingRunner(cfg)
    assert contents(folder) == before


def test_bad_checkpoints_are_refused_before_training(tmp_path: Path):
    folder = stopped(make_runner(tmp_path), step=2)
    path = str(folder)
    refuses(tmp_path, FileNotFoundError, "is no folder", resume_from_checkpoint=path + "0")
    refuses(
        tmp_path,
        FileNotFoundError,
        "checkpoints below it: 64. Give one of them",
        resume_from_checkpoint=str(folder.parent),
    )
    refuses(
        tmp_path,
        ValueError,
        "holds another SAE: d_sae=32; this run asks for d_sae=40",
        resume_from_checkpoint=path,
        d_sae=40,
    )
    refuses(
        tmp_path,
        ValueError,
        "architecture='matryoshka', d_in=16; this run asks for architecture='matryoshka_batchtopk', d_in=8",
        resume_from_checkpoint=path,
        d_in=8,
        architecture="matryoshka_batchtopk",
    )
    for option in (
        {"latent_order": "energy"},
        {"refinement_step": 0.3},
        {"prefix_sampling": "random"},
        {"activation": "relu", "k": None},
    ):
        refuses(
            tmp_path,
            ValueError,
            f"holds another SAE: {next(iter(option))}=",
            resume_from_checkpoint=path,
            **({**option, "matryoshka_widths": [4, 12, 32]}),
        )
    (folder / "trainer_state.pt").unlink()
    refuses(tmp_path, FileNotFoundError, "lacks trainer_state.pt", resume_from_checkpoint=path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"latent_order": "energy"}, {"latent_order": "frequency"}),
        ({"refinement_step": 0.3}, {"refine_until": 10}),
        ({"activation": "relu", "k": None}, {"target_l0": 3}),
        ({"activation": "relu", "k": None}, {"activation": "jumprelu"}),
    ],
)
def test_a_state_is_not_taken_for_another(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
):
    """Such as mean squares for frequencies."""
    before = {"matryoshka_widths": [4, 12, 32], **before}
    path = str(stopped(make_runner(tmp_path, **before), step=2))
    says = f"holds another SAE: {next(iter(after))}="
    refuses(tmp_path, ValueError, says, resume_from_checkpoint=path, **(before | after))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {"lr": 1e-5}, "lr=0.003.* lr=1e-05.* would have no effect"),
        ({}, {"lr_decay_steps": 0}, "lr_decay_steps=7"),
        ({}, {"training_tokens": 48 * 32}, "training_tokens=768"),
        (
            {"lr_scheduler_name": "constant", "lr_decay_to": 0.1},
            {"lr_decay_to": 0.0},
            "lr_decay_to=0.1",
        ),
        (
            {"lr_scheduler_name": "constant"},
            {"lr_decay_to": 0.1},
            "lr_decay_to=0.0.* lr_decay_to=0.1 would have no effect",
        ),
    ],
)
def test_a_resumed_run_cannot_have_other_learning_rates(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], says: str
):
    """SAELens restores the optimizer and the scheduler: a new rate would be ignored, or end at zero."""
    path = str(stopped(make_runner(tmp_path, **before), step=2))
    refuses(tmp_path, ValueError, says, resume_from_checkpoint=path, **(before | after))


def test_a_run_of_a_constant_rate_can_be_made_longer(tmp_path: Path):
    constant = {"lr_scheduler_name": "constant", "lr_decay_steps": 0}
    path = str(stopped(make_runner(tmp_path / "a", **constant), step=2))
    longer = {**constant, "training_tokens": 30 * 32}
    resumed = make_runner(tmp_path / "b", resume_from_checkpoint=path, **longer)
    assert resumed.run().cfg.metadata.l0 is not None


def test_another_configuration_of_the_same_shape_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = stopped(make_runner(tmp_path), step=2)
    make_runner(tmp_path, k=4, resume_from_checkpoint=str(folder))
    assert any("k=4 instead of k=3" in text for text in caplog.messages)


@pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
def test_final_checkpoint_with_folded_statistics_is_refused(tmp_path: Path, mode: str):
    runner = make_runner(tmp_path, normalize_activations=mode, save_final_checkpoint=True)
    runner.run()
    refuses(
        tmp_path,
        ValueError,
        "the statistics are folded into its weights",
        resume_from_checkpoint=str(runner.checkpoint_path / "final_768"),  # type: ignore
        normalize_activations=mode,
    )


def test_final_checkpoint_is_continued_with_more_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # what is measured at the end of the shorter run comes next in the longer one
    monkeypatch.setattr("sae_lens_matryoshka.training.runner.record_held_out", lambda *_: None)
    constant = {"lr_scheduler_name": "constant", "lr_decay_steps": 0}
    runner = make_runner(tmp_path, save_final_checkpoint=True, **constant)
    runner.run()
    folder = str(runner.checkpoint_path / "final_768")  # type: ignore
    more = make_runner(
        tmp_path,
        **constant,
        resume_from_checkpoint=folder,
        training_tokens=30 * 32,
        save_final_checkpoint=True,
    )
    more.run()
    state = trainer_state(more.checkpoint_path / "final_960")  # type: ignore
    assert state["n_training_steps"] == 30
    assert not set(runner.model.seen) & set(more.model.seen)


# ---- nothing is saved over by what fails


def test_failure_while_saving_the_result_leaves_the_old_one(tmp_path: Path):
    class DiskFull(MatryoshkaSAETrainingRunner):
        def save_final_sae(self, *args: Any, **kwargs: Any) -> None:
            save = self.sae.save_inference_model

            def save_half(path: str) -> Any:
                save(path)
                (Path(path) / "cfg.json").write_text("{")
                raise OSError("disk full")

            self.sae.save_inference_model = save_half  # type: ignore
            super().save_final_sae(*args, **kwargs)

    make_runner(tmp_path).run()
    before = contents(tmp_path / "output")
    with pytest.raises(OSError, match="disk full"):
        make_runner(tmp_path, runner_class=DiskFull, k=5).run()
    assert contents(tmp_path / "output") == before
    make_runner(tmp_path, k=5).run()
    assert contents(tmp_path / "output") != before


def test_failure_while_saving_a_checkpoint_leaves_the_old_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    class DiskFull(MatryoshkaSAETrainingRunner):
        def save_checkpoint(self, checkpoint_path: Path | None) -> None:
            if self.sae.cfg.k == 5:
                raise OSError("disk full")
            super().save_checkpoint(checkpoint_path)

    changes: dict[str, Any] = {"runner_class": DiskFull, "n_checkpoints": 1}
    first = make_runner(tmp_path, **changes)
    first.run()
    folder = first.checkpoint_path
    assert folder is not None
    before = contents(folder)
    second = make_runner(tmp_path, **changes, k=5)
    second.cfg.checkpoint_path = str(folder)  # as with a wandb_id: the same folder, the same names
    second.run()
    assert "disk full" in caplog.text
    assert contents(folder) == before
    assert os.listdir(folder) == ["416"]
    third = make_runner(tmp_path, n_checkpoints=1, k=5)
    third.cfg.checkpoint_path = str(folder)
    third.run()
    assert json.loads((folder / "416" / "cfg.json").read_text())["k"] == 5
    assert os.listdir(folder) == ["416"]


def test_interruption_before_any_new_step_keeps_the_checkpoint(tmp_path: Path):
    folder = stopped(make_runner(tmp_path), step=3)
    before = contents(folder)
    runner = make_runner(tmp_path, resume_from_checkpoint=str(folder))
    runner.cfg.checkpoint_path = str(folder.parent)

    def fail() -> None:
        raise KeyboardInterrupt

    call_at_step(runner, 1, fail)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert contents(folder) == before
