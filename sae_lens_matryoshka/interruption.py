"""Stopping between two training steps: the trainer that saves everything there, exactly."""

import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.prefetch import PrefetchingIterator
from tqdm.auto import tqdm
from typing_extensions import Self, override

from sae_lens_matryoshka.activation_stream import ResumableStore
from sae_lens_matryoshka.whole import whole_folder


class TrainingInterrupted(Exception):
    """
    SIGINT (Ctrl-C) or SIGTERM ended a run after its state was saved.

    Args:
        signum: The signal that came.
        step: Training steps done.
        checkpoint: What to give as resume_from_checkpoint; None: checkpoint_path was None.
    """

    def __init__(self, signum: signal.Signals, step: int, checkpoint: Path | None):
        self.signum = signum
        self.step = step
        self.checkpoint = checkpoint
        if checkpoint is None:
            saved = "Nothing was saved, since checkpoint_path=None."
        else:
            saved = (
                f"Everything is saved in {checkpoint}. To continue, run the same configuration "
                f"with resume_from_checkpoint={str(checkpoint)!r}."
            )
        super().__init__(f"{signum.name} ended training after step {step}. {saved}")


class Interruption:
    """
    Defers SIGINT and SIGTERM: from defer() to the end of its context they are only noted.

    One that nobody has acted on by the end of the context (the last step was done) is raised again.
    Outside the main thread, where Python allows no handlers, nothing is deferred.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.requested = None
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._previous.items():
            # None: a handler that was not set from Python and cannot be set back from it
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
        if self.requested is not None and error_type is None:
            signal.raise_signal(self.requested)

    def defer(self) -> None:
        """Begin to note signals, if that has not begun."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup: keep ignoring it
                self._previous[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(signum)


class InterruptibleTrainer(SAETrainer[Any, Any]):
    """SAELens's SAETrainer, whose checkpoints are whole and exact and which stops when asked to."""

    interruption: Interruption
    store: ResumableStore

    @classmethod
    def adopt(
        cls, trainer: SAETrainer[Any, Any], interruption: Interruption, store: ResumableStore
    ) -> "InterruptibleTrainer":
        """
        Turn a trainer that SAELens's runner has just built, and offers no factory for, into this.

        Args:
            trainer: The trainer, its checkpoint loaded if there is one; the same object is returned.
            interruption: Says when to stop.
            store: The store that its batches come from.
        """
        trainer.__class__ = cls
        assert isinstance(trainer, cls)
        trainer.interruption = interruption
        trainer.store = store
        # SAELens's checkpoints are one step short, its scheduler's count is right
        trainer.n_training_steps = trainer.lr_scheduler.last_epoch
        trainer._drop_passed_thresholds()
        return trainer

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        self.interruption.defer()  # before the first step there is nothing to save
        self.store.note_taken(batch)
        return super().step(batch)

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
            tqdm.write(f"{signum.name}: training stops after step {self.n_training_steps}.")
        if signum is not None or self._drop_passed_thresholds():
            self.save_checkpoint(checkpoint_name=str(self.n_training_samples))
        if signum is not None:
            base = self.cfg.checkpoint_path
            checkpoint = None if base is None else Path(base) / str(self.n_training_samples)
            raise TrainingInterrupted(signum, self.n_training_steps, checkpoint)

    def _drop_passed_thresholds(self) -> bool:
        """Whether there were any: one checkpoint serves all that a step has passed."""
        before = self.checkpoint_thresholds
        self.checkpoint_thresholds = [n for n in before if n >= self.n_training_samples]
        return len(self.checkpoint_thresholds) < len(before)

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        provider = self.data_provider
        with provider.paused() if isinstance(provider, PrefetchingIterator) else nullcontext():
            if base is None:
                super().save_checkpoint(checkpoint_name, None, wandb_aliases)
                return
            with whole_folder(Path(base) / checkpoint_name) as staging:
                super().save_checkpoint(staging.name, staging.parent, wandb_aliases)
