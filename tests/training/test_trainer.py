"""Runs that an error ends: what is saved, and that the rest of the run is the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from datasets import Dataset, IterableDataset
from runner_helpers import (
    CONTEXT,
    HOOK,
    TinyModel,
    assert_same,
    call_at_step,
    make_runner,
    options,
    results,
    save_cached_activations,
    signal_at_step,
    text_dataset,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import SAE, LoggingConfig
from small_disk import fill, small_disk
from torch.optim.optimizer import register_optimizer_step_post_hook

from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.training.interruption import TrainingFailed, TrainingInterrupted

Breakage = Callable[[MatryoshkaSAETrainingRunner], None]


def failed(runner: MatryoshkaSAETrainingRunner) -> TrainingFailed:
    with pytest.raises(TrainingFailed) as caught:
        runner.run()
    return caught.value


def fail(error: BaseException) -> Callable[..., Any]:
    def action(*_: Any, **__: Any) -> Any:
        raise error

    return action


def on_call(owner: Any, name: str, number: int, error: Exception) -> None:
    """Let the call of a method with this number, counted from 1, fail."""
    method, calls = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise error
        return method(*args, **kwargs)

    setattr(owner, name, wrapped)


def break_model(runner: MatryoshkaSAETrainingRunner) -> None:
    on_call(runner.model, "run_with_cache", 14, RuntimeError("out of memory"))


def break_step(runner: MatryoshkaSAETrainingRunner) -> None:
    call_at_step(runner, 11, fail(RuntimeError("out of memory")))


def break_backward(runner: MatryoshkaSAETrainingRunner) -> None:
    forward, calls = runner.sae.training_forward_pass, []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        calls.append(None)
        if len(calls) == 11:
            if not runner.cfg.prefetch_llm_batches:
                torch.rand(1)  # the random generators are put back, too
            output.loss.register_hook(fail(RuntimeError("out of memory")))
        return output

    runner.sae.training_forward_pass = wrapped


# ---- errors in the middle


@pytest.mark.parametrize("breakage", [break_model, break_step, break_backward])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefetch_llm_batches": 2},
        {"latent_order": "frequency", "normalize_activations": "expected_average_only_in"},
    ],
    ids=str,
)
def test_any_error_saves_and_the_resumed_run_ends_with_the_same_numbers(
    tmp_path: Path, breakage: Breakage, changes: dict[str, Any]
):
    make_runner(tmp_path / "whole", **changes).run()
    runner = make_runner(tmp_path / "parts", **changes)
    breakage(runner)
    error = failed(runner)
    assert isinstance(error.__cause__, RuntimeError)
    assert 0 < error.step < 24
    assert error.checkpoint is not None
    assert error.checkpoint.name == str(error.step * 32)
    for part in ("out of memory", f"resume_from_checkpoint={str(error.checkpoint)!r}"):
        assert part in str(error)
    assert not (tmp_path / "parts" / "output").exists()
    make_runner(tmp_path / "parts", resume_from_checkpoint=str(error.checkpoint), **changes).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


@pytest.mark.parametrize("prefetch", [False, 2])
def test_a_stream_that_breaks_in_the_middle_of_a_batch(tmp_path: Path, prefetch: int):
    rows = text_dataset()["text"]

    def stream(n_rows: int) -> Iterator[dict[str, str]]:
        for row in rows[:n_rows]:
            yield {"text": row}
        if n_rows < len(rows):
            raise ConnectionError("the server hung up")

    def runner(folder: str, n_rows: int, **changes: Any) -> MatryoshkaSAETrainingRunner:
        dataset = IterableDataset.from_generator(stream, gen_kwargs={"n_rows": n_rows})
        return make_runner(
            tmp_path / folder, dataset, prefetch_llm_batches=prefetch, streaming=True, **changes
        )

    runner("whole", len(rows)).run()
    error = failed(runner("parts", n_rows=5))
    assert "the server hung up" in str(error)
    runner("parts", len(rows), resume_from_checkpoint=str(error.checkpoint)).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


def test_an_evaluation_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def runner(folder: str, **changes: Any) -> MatryoshkaSAETrainingRunner:
        logger = LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=3)
        small = {"n_eval_batches": 1, "eval_batch_size_prompts": 2}
        return make_runner(tmp_path / folder, logger=logger, **small, **changes)

    runner("whole").run()
    broken = runner("parts")
    broken.evaluator = fail(ZeroDivisionError("no tokens"))  # type: ignore[assignment]
    error = failed(broken)
    wandb.finish()
    assert error.step == 6
    assert "evaluation failed: ZeroDivisionError: no tokens" in str(error)
    # the evaluation after step 6 drew two prompts, which the resumed run reads as training data
    again = runner("parts", resume_from_checkpoint=str(error.checkpoint))
    again.run()
    assert again.cfg.logger.log_to_wandb
    SAE.load_from_disk(tmp_path / "parts" / "output")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_exception_saves_as_well(tmp_path: Path, error: BaseException):
    make_runner(tmp_path / "whole").run()
    runner = make_runner(tmp_path / "parts")
    call_at_step(runner, 5, fail(error))
    kind = TrainingInterrupted if isinstance(error, KeyboardInterrupt) else SystemExit
    with pytest.raises(kind):
        runner.run()
    checkpoint = runner.checkpoint_path / "128"  # type: ignore[operator]
    make_runner(tmp_path / "parts", resume_from_checkpoint=str(checkpoint)).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


def test_an_error_while_the_weights_change_saves_nothing_and_names_the_last_checkpoint(
    tmp_path: Path,
):
    runner = make_runner(tmp_path, n_checkpoints=3)  # 224, 416, 608
    steps: list[None] = []

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if any(p is runner.sae.W_dec for p in optimizer.param_groups[0]["params"]):
            steps.append(None)
            if len(steps) == 10:
                raise RuntimeError("half of the weights are new")

    handle = register_optimizer_step_post_hook(hook)
    error = failed(runner)
    handle.remove()
    assert (error.step, error.checkpoint) == (9, None)
    assert str(runner.checkpoint_path / "224") in str(error)  # type: ignore[operator]
    assert os.listdir(runner.checkpoint_path) == ["224"]  # type: ignore[arg-type]


def test_an_error_before_the_first_step_is_raised_as_it_is(tmp_path: Path):
    runner = make_runner(tmp_path)
    runner.model.run_with_cache = fail(RuntimeError("out of memory"))  # type: ignore
    with pytest.raises(RuntimeError, match="^out of memory$") as caught:
        runner.run()
    assert not isinstance(caught.value, TrainingFailed)
    assert not (tmp_path / "checkpoints").exists()


def test_without_checkpoint_path_nothing_is_saved_and_that_is_said(tmp_path: Path):
    runner = make_runner(tmp_path, checkpoint_path=None)
    break_step(runner)
    error = failed(runner)
    assert error.checkpoint is None
    assert "Nothing was saved, since checkpoint_path=None" in str(error)
    assert os.listdir(tmp_path) == []


def test_a_closing_terminal_saves_like_ctrl_c(tmp_path: Path):
    runner = make_runner(tmp_path)
    signal_at_step(runner, 3, signal.SIGHUP)
    with pytest.raises(TrainingInterrupted) as caught:
        runner.run()
    assert caught.value.checkpoint == runner.checkpoint_path / "96"  # type: ignore[operator]


# ---- activations that are not finite


def cached(tmp_path: Path, nan_rows: slice | int | None = None) -> dict[str, Any]:
    folder = tmp_path / f"data {nan_rows}"
    folder.mkdir(exist_ok=True)
    path = folder / "cached"
    if not path.exists():
        path = Path(save_cached_activations(folder, nan_rows))  # type: ignore[arg-type]
    return {"use_cached_activations": True, "cached_activations_path": str(path)}


def test_a_text_of_nan_activations_is_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    given = cached(tmp_path, nan_rows=20)
    make_runner(tmp_path / "whole", **given).run()
    skipped = [text for text in caplog.messages if "NaN or infinite" in text]
    assert len(skipped) == 2  # the first, and the count at the end
    assert f"{CONTEXT} of" in skipped[1]
    assert all(tensor.isfinite().all() for tensor in results(tmp_path / "whole").values())

    runner = make_runner(tmp_path / "parts", **given)
    signal_at_step(runner, 12)
    with pytest.raises(TrainingInterrupted) as caught:
        runner.run()
    caplog.clear()
    checkpoint = str(caught.value.checkpoint)
    make_runner(tmp_path / "parts", resume_from_checkpoint=checkpoint, **given).run()
    assert [text for text in caplog.messages if "NaN or infinite" in text] == skipped[1:]
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


def test_too_many_nan_activations_end_the_run_and_saved_is_what_was_done(tmp_path: Path):
    given = cached(tmp_path, nan_rows=slice(80, 130))
    runner = make_runner(tmp_path, **given)
    error = failed(runner)
    assert "max_nonfinite_fraction=0.01" in str(error)
    checkpoint = str(error.checkpoint)
    again = make_runner(tmp_path, resume_from_checkpoint=checkpoint, **given)
    with pytest.raises(ValueError, match="max_nonfinite_fraction"):  # before any new step
        again.run()
    make_runner(
        tmp_path, resume_from_checkpoint=checkpoint, max_nonfinite_fraction=0.6, **given
    ).run()
    assert all(tensor.isfinite().all() for tensor in results(tmp_path).values())


def test_no_nan_activation_is_allowed_with_a_fraction_of_0(tmp_path: Path):
    runner = make_runner(tmp_path, max_nonfinite_fraction=0.0, **cached(tmp_path, nan_rows=80))
    assert "max_nonfinite_fraction=0" in str(failed(runner))


def test_all_of_them_nan_is_found_at_once(tmp_path: Path):
    with pytest.raises(ValueError, match="max_nonfinite_fraction"):
        make_runner(tmp_path, **cached(tmp_path, nan_rows=slice(0, 300))).run()


def test_an_activation_whose_square_overflows_is_skipped(tmp_path: Path):
    class Overflowing(TinyModel):
        def run_with_cache(self, tokens: torch.Tensor, **kwargs: Any) -> Any:
            output, cache = super().run_with_cache(tokens, **kwargs)
            if len(self.seen) == 50:
                cache[HOOK][0, 0] = 1e30
            return output, cache

    torch.manual_seed(0)
    runner = MatryoshkaSAETrainingRunner(
        LanguageModelSAERunnerConfig(**options(tmp_path)),
        override_model=Overflowing(),
        override_dataset=token_dataset(),
    )
    runner.run()
    assert runner._store.finite_rows.n_skipped == 1


# ---- a disk that is full


def test_training_goes_on_when_a_checkpoint_finds_the_disk_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_runner(tmp_path / "whole").run()
    with small_disk(tmp_path / "checkpoints", megabytes=4):
        runner = make_runner(tmp_path, n_checkpoints=3)  # 224, 416, 608
        call_at_step(runner, 10, lambda: fill(tmp_path / "checkpoints"))
        call_at_step(runner, 16, lambda: (tmp_path / "checkpoints" / "filler").unlink())
        runner.run()
        folder = runner.checkpoint_path
        assert folder is not None
        assert sorted(os.listdir(folder)) == ["224", "608"]
        again = make_runner(tmp_path / "again", resume_from_checkpoint=str(folder / "224"))
        again.run()
    (message,) = [text for text in caplog.messages if "could not be saved" in text]
    for part in (str(folder / "416"), "No space left on device", f"checkpoint is {folder / '224'}"):
        assert part in message
    assert_same(results(tmp_path), results(tmp_path / "whole"))
    assert_same(results(tmp_path / "again"), results(tmp_path / "whole"))


def test_a_stop_with_a_full_disk_is_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    make_runner(tmp_path / "whole").run()
    with small_disk(tmp_path / "checkpoints", megabytes=1):
        runner = make_runner(tmp_path)
        call_at_step(runner, 9, lambda: fill(tmp_path / "checkpoints"))
        signal_at_step(runner, 10)
        with pytest.raises(TrainingInterrupted) as caught:
            runner.run()
    checkpoint = caught.value.checkpoint
    assert checkpoint is not None
    assert tmp_path / "elsewhere" in checkpoint.parents
    make_runner(tmp_path, resume_from_checkpoint=str(checkpoint)).run()
    assert_same(results(tmp_path), results(tmp_path / "whole"))


def test_a_result_that_finds_the_disk_full_is_saved_elsewhere(tmp_path: Path):
    make_runner(tmp_path / "whole").run()
    with small_disk(tmp_path / "output", megabytes=1):
        runner = make_runner(tmp_path)
        call_at_step(runner, 24, lambda: fill(tmp_path / "output"))
        with pytest.raises(OSError, match="No space left on device") as caught:
            runner.run()
        assert os.listdir(tmp_path / "output") == ["filler"]
    (saved,) = (tmp_path / "checkpoints").glob("*/sae-*")
    assert f"complete in {saved}" in str(caught.value)
    expected = SAE.load_from_disk(tmp_path / "whole" / "output").state_dict()
    assert_same(SAE.load_from_disk(saved).state_dict(), expected)


def test_a_lost_disk_is_reported_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    runner = make_runner(tmp_path, n_checkpoints=3)
    folder = runner.checkpoint_path
    assert folder is not None

    def lose() -> None:
        folder.rename(tmp_path / "lost")
        folder.write_text("a file where the folder was")

    call_at_step(runner, 10, lose)
    runner.run()
    assert os.listdir(tmp_path / "lost") == ["224"]
    messages = [text for text in caplog.messages if "could not be saved" in text]
    assert str(folder / "416") in messages[0]
    SAE.load_from_disk(tmp_path / "output")


# ---- a logger that fails


def logged_runner(tmp_path: Path, **changes: Any) -> MatryoshkaSAETrainingRunner:
    logger = LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=3)
    small = {"n_eval_batches": 1, "eval_batch_size_prompts": 2, "n_checkpoints": 2}
    return make_runner(tmp_path, logger=logger, **small, **changes)


def test_a_logger_that_breaks_is_reported_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The connection to W&B's own process is lost, as when that process is killed."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    runner = logged_runner(tmp_path, save_final_checkpoint=True)

    def break_wandb() -> None:
        for name in ("log", "log_artifact", "finish"):
            monkeypatch.setattr(wandb, name, fail(ConnectionResetError("Connection lost")))

    call_at_step(runner, 5, break_wandb)
    runner.run()
    monkeypatch.undo()
    wandb.finish()
    assert len([text for text in caplog.messages if "Connection lost" in text]) == 1
    SAE.load_from_disk(tmp_path / "output")
    cfg = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert cfg["logger"]["log_to_wandb"] is True  # a resumed run logs again
    assert len(os.listdir(runner.checkpoint_path)) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", ["log_artifact", "finish"])
def test_an_upload_that_fails_leaves_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    runner = logged_runner(tmp_path)
    error = ConnectionResetError("Connection lost")
    # wandb.init sets these functions
    call_at_step(runner, 1, lambda: monkeypatch.setattr(wandb, broken, fail(error)))
    runner.run()
    monkeypatch.undo()
    wandb.finish()
    assert sorted(os.listdir(tmp_path / "output")) == [
        "cfg.json",
        "runner_cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    ]
    assert len(os.listdir(runner.checkpoint_path)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["/home/me/my model", "org/model:" + "long" * 40])
def test_artifacts_are_named_as_wandb_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    names: list[str] = []

    def watch() -> None:
        log_artifact = wandb.log_artifact  # which wandb.init has set

        def note(artifact: Any, **kwargs: Any) -> Any:
            names.append(artifact.name)
            return log_artifact(artifact, **kwargs)

        monkeypatch.setattr(wandb, "log_artifact", note)

    runner = logged_runner(tmp_path, model_name=name)
    call_at_step(runner, 1, watch)
    runner.run()
    assert len(names) == 6  # two checkpoints and the result, each with its sparsity
    assert not [text for text in caplog.messages if "W&B failed" in text]


def test_a_logger_of_the_users_own_class_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    calls: list[str] = []

    class Own(LoggingConfig):
        def log(self, *_: Any, **__: Any) -> None:
            calls.append("log")
            raise RuntimeError("broken")

    make_runner(tmp_path, logger=Own(), n_checkpoints=1).run()
    assert calls == ["log"]  # the first failure is the last call
    SAE.load_from_disk(tmp_path / "output")


def test_data_that_end_are_named(tmp_path: Path):
    runner = make_runner(tmp_path, Dataset.from_dict({"tokens": [list(range(CONTEXT))] * 3}))
    runner.run()  # small data are repeated
    runner = make_runner(tmp_path / "again")
    on_call(runner.activations_store.mixing, "_load", 9, StopIteration())  # type: ignore
    assert "activations came to an end" in str(failed(runner))


# ---- processes that are killed


KILLED_WANDB = """
import os, signal, sys
from pathlib import Path
import psutil
from runner_helpers import call_at_step
from test_trainer import logged_runner

def kill_wandb():
    (core,) = [c for c in psutil.Process().children(True) if "wandb-core" in c.name()]
    core.kill()
    core.wait()

runner = logged_runner(Path(sys.argv[1]))
call_at_step(runner, 5, kill_wandb)
runner.run()
"""


@pytest.mark.slow
def test_a_killed_wandb_does_not_end_the_training(tmp_path: Path):
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    result = subprocess.run(
        [sys.executable, "-c", KILLED_WANDB, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr.count("Logging to W&B failed") == 1, result.stderr
    assert "Training is done" in result.stdout
    SAE.load_from_disk(tmp_path / "output")


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from runner_helpers import make_runner
from sae_lens_matryoshka import MatryoshkaSAETrainingRunner

class Killed(MatryoshkaSAETrainingRunner):
    def save_checkpoint(self, checkpoint_path):
        super().save_checkpoint(checkpoint_path)
        if checkpoint_path.parent.name.startswith(".416."):
            os.kill(os.getpid(), signal.SIGKILL)

make_runner(Path(sys.argv[1]), runner_class=Killed, n_checkpoints=3).run()
"""


@pytest.mark.slow
def test_what_a_killed_run_left_is_removed_when_it_is_started_again(tmp_path: Path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert len(os.listdir(folder)) == 2  # 224, and the unfinished one
    (folder / ".mine.1a2b3c4d").mkdir()
    (folder / ".mine.1a2b3c4d" / "notes").write_text("mine")
    again = make_runner(tmp_path, resume_from_checkpoint=str(folder / "224"))
    assert sorted(os.listdir(folder)) == [".mine.1a2b3c4d", "224"]
    again.run()
    make_runner(tmp_path / "whole").run()
    assert_same(results(tmp_path), results(tmp_path / "whole"))
