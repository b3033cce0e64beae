"""SAELens's trainer, with complete checkpoints, that saves everything before it stops."""

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import wandb
from sae_lens import SAETrainer, TrainingSAE, logger
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.prefetch import PrefetchingIterator
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_matryoshka.atomic_files import SaveError, save_errors_named, whole_folder
from sae_lens_matryoshka.training.activations.store import ResumableStore
from sae_lens_matryoshka.training.interruption import (
    Interruption,
    TrainingFailed,
    TrainingInterrupted,
)
from sae_lens_matryoshka.training.resuming.checkpoint_folder import (
    copy_other_files,
    newest_complete,
)
from sae_lens_matryoshka.training.run_log import EvaluationFailed, RunLog
from sae_lens_matryoshka.training.step_rollback import rollback


class InterruptibleTrainer(SAETrainer[Any, Any]):
    """
    SAELens's SAETrainer, whose checkpoints are complete and exact.

    When it is told to stop, or when anything but a step of the optimizer fails, it saves what
    training needs to go on, as it was after the last step that was done.
    """

    interruption: Interruption
    store: ResumableStore
    log: RunLog
    n_steps_before: int  # of earlier processes
    weights_are_changing: (
        bool  # a step of the optimizer has begun and the training step is not over
    )

    @classmethod
    def adopt(
        cls,
        trainer: SAETrainer[Any, Any],
        interruption: Interruption,
        store: ResumableStore,
        log: RunLog,
    ) -> "InterruptibleTrainer":
        """
        Turn a trainer that SAELens's runner has just built, and offers no factory for, into this.

        Args:
            trainer: The trainer, its checkpoint loaded if there is one; the same object is returned.
            interruption: Says when to stop.
            store: The store that its batches come from.
            log: Reports failures of the logger.
        """
        trainer.__class__ = cls
        assert isinstance(trainer, cls)
        trainer.interruption = interruption
        trainer.store = store
        trainer.log = log
        # SAELens's checkpoints are one step short, its scheduler's count is right
        trainer.n_training_steps = trainer.n_steps_before = trainer.lr_scheduler.last_epoch
        trainer._drop_passed_thresholds()
        trainer.weights_are_changing = False
        trainer.optimizer.register_step_pre_hook(trainer._note_step_of_the_optimizer)
        if trainer.evaluator is not None:
            trainer.evaluator = _named_in_errors(trainer.evaluator)
        return trainer

    # ---- a run that ends early

    @override
    def fit(self) -> TrainingSAE[Any]:
        try:
            return super().fit()
        except (TrainingInterrupted, TrainingFailed):
            raise
        except BaseException as error:
            done = self.lr_scheduler.last_epoch
            is_over = self.n_training_samples >= self.cfg.total_training_samples
            if done == self.n_steps_before or (is_over and self.n_training_steps == done):
                raise  # nothing new to save, or the weights are already in their final form
            self.n_training_steps = done
            self._end(error)

    def _end(self, cause: signal.Signals | BaseException) -> NoReturn:
        """Save what training needs to go on, and raise what says where."""
        step, checkpoint, reason = self.n_training_steps, None, "since checkpoint_path=None"
        if self.weights_are_changing:
            reason = f"since the error came while the weights were changed{self._last_checkpoint()}"
        elif self.cfg.checkpoint_path is not None:
            try:
                checkpoint = self._save_somewhere(Path(self.cfg.checkpoint_path))
            except Exception as error:
                reason = f"since that failed as well: {error}{self._last_checkpoint()}"
        if isinstance(cause, signal.Signals):
            raise TrainingInterrupted(cause, step, checkpoint, reason)
        if isinstance(cause, KeyboardInterrupt):
            raise TrainingInterrupted(signal.SIGINT, step, checkpoint, reason) from cause
        failure = TrainingFailed(cause, step, checkpoint, reason)
        if isinstance(cause, Exception):
            raise failure from cause
        logger.error(str(failure))  # such as SystemExit
        raise cause

    def _save_somewhere(self, base: Path) -> Path:
        """Save a checkpoint below base or, where that fails, among the temporary files."""
        name = str(self.n_training_samples)
        try:
            self.write_checkpoint(name, base)
        except SaveError as error:
            logger.error(f"{error} Saving among the temporary files instead.")
            base = Path(tempfile.mkdtemp(prefix="sae-lens-matryoshka-"))
            self.write_checkpoint(name, base)
        return base / name

    def _last_checkpoint(self) -> str:
        base = self.cfg.checkpoint_path
        newest = None if base is None else newest_complete(Path(base))
        return "" if newest is None else f"; the newest complete checkpoint is {newest}"

    # ---- one step

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        self.interruption.defer()  # before the first step there is nothing to save
        put_back = rollback(self)
        self._begin_sparsity_window()
        self.weights_are_changing = False
        try:
            output = super().step(batch)
        except BaseException:
            if not self.weights_are_changing:
                put_back()
            raise
        self.weights_are_changing = False
        self.store.note_taken(batch)
        return output

    def _note_step_of_the_optimizer(self, *_: Any) -> None:
        self.weights_are_changing = True

    @override
    def _checkpoint_if_needed(self) -> None:
        # fit() calls this after each step, and only then counts the step
        self.n_training_steps += 1
        try:
            self._checkpoint_or_stop()
        finally:
            self.n_training_steps -= 1

    def _checkpoint_or_stop(self) -> None:
        signum = self.interruption.requested
        if signum is not None:
            with suppress(OSError):  # the terminal may be gone
                tqdm.write(f"{signum.name}: training stops after step {self.n_training_steps}.")
            self._end(signum)
        if self._drop_passed_thresholds():
            self.save_checkpoint(checkpoint_name=str(self.n_training_samples))

    def _drop_passed_thresholds(self) -> bool:
        """Whether there were any: one checkpoint serves all that a step has passed."""
        before = self.checkpoint_thresholds
        self.checkpoint_thresholds = [n for n in before if n >= self.n_training_samples]
        return len(self.checkpoint_thresholds) < len(before)

    # ---- checkpoints

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        """Save a checkpoint along the way; training goes on when that fails."""
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        try:
            self.write_checkpoint(checkpoint_name, base, wandb_aliases)
        except Exception as error:
            logger.error(f"{error} Training goes on{self._last_checkpoint()}.")

    def write_checkpoint(
        self, name: str, base: Path | str | None, wandb_aliases: list[str] | None = None
    ) -> None:
        """
        Write a checkpoint, then upload it if the run is logged.

        Raises:
            SaveError: It could not be written; names the path and the cause.
        """
        provider = self.data_provider
        with provider.paused() if isinstance(provider, PrefetchingIterator) else nullcontext():
            if base is None:  # only to W&B
                with self._log_failure_reported():
                    super().save_checkpoint(name, None, wandb_aliases)
                return
            target, cfg = Path(base) / name, self.cfg
            self.cfg = replace(cfg, logger=replace(cfg.logger, log_to_wandb=False))
            try:
                with (
                    save_errors_named(target, Path(base)),
                    whole_folder(target) as staging,
                    save_errors_named(target, staging),
                ):
                    super().save_checkpoint(staging.name, staging.parent)
                    copy_other_files(target, staging)
            finally:
                self.cfg = cfg
        if self.cfg.logger.log_to_wandb:
            with self._log_failure_reported():
                files = (SAE_WEIGHTS_FILENAME, SAE_CFG_FILENAME, SPARSITY_FILENAME)
                weights, config, sparsity = (target / file for file in files)
                self.cfg.logger.log(self, weights, config, sparsity, wandb_aliases)

    # ---- logging

    @contextmanager
    def _log_failure_reported(self) -> Iterator[None]:
        """Report a failure of the logger once, and log no more."""
        with self.log.failure_reported():
            yield
        if self.log.has_failed:
            self.cfg.logger = replace(self.cfg.logger, log_to_wandb=False)

    @override
    def _log_train_step(self, step_output: TrainStepOutput) -> None:
        with self._log_failure_reported():
            super()._log_train_step(step_output)

    @override
    def _run_and_log_evals(self) -> None:
        with self._log_failure_reported():
            super()._run_and_log_evals()

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        """Nothing: step() does it, since before that the next batch may fail to come."""
        return {}

    def _begin_sparsity_window(self) -> None:
        sparsity = super().full_sparsity_window_log()
        if sparsity:
            self._reset_running_sparsity_stats()
            self._log_sparsity(sparsity)

    @override
    def full_sparsity_window_log(self) -> dict[str, Any]:
        """Log the last window, which fit() asks for; nothing is left for it to log."""
        self._log_sparsity(super().full_sparsity_window_log())
        return {}

    def _log_sparsity(self, sparsity: dict[str, Any]) -> None:
        if sparsity and self.cfg.logger.log_to_wandb:
            with self._log_failure_reported():
                wandb.log(sparsity, step=self.n_training_steps)


def _named_in_errors(evaluator: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def evaluate(*args: Any) -> dict[str, Any]:
        try:
            return evaluator(*args)
        except Exception as error:
            raise EvaluationFailed(
                f"The evaluation failed: {type(error).__name__}: {error}"
            ) from error

    return evaluate
