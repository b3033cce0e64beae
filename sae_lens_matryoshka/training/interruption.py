"""How a run ends early: the signals, and the errors that say where everything is saved."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from typing_extensions import Self

from sae_lens_matryoshka.training.run_log import EvaluationFailed

# What ends a run: Ctrl-C, a scheduler's notice, and a terminal that closes (not on Windows).
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class TrainingInterrupted(Exception):
    """
    A signal (SIGINT for Ctrl-C, SIGTERM, SIGHUP) ended a run after its state was saved.

    Args:
        signum: The signal that came.
        step: Training steps done.
        checkpoint: What to give as resume_from_checkpoint; None: nothing was saved.
        reason: Why nothing was saved.
    """

    def __init__(
        self,
        signum: signal.Signals,
        step: int,
        checkpoint: Path | None,
        reason: str = "since checkpoint_path=None",
    ):
        self.signum = signum
        self.step = step
        self.checkpoint = checkpoint
        self.reason = reason
        saved = _where_it_is_saved(checkpoint, reason)
        super().__init__(f"{signum.name} ended training after step {step}. {saved}")


class TrainingFailed(RuntimeError):
    """
    An error, the cause of this one, ended a run after its state was saved.

    Args:
        error: What was raised.
        step: Training steps done.
        checkpoint: What to give as resume_from_checkpoint; None: nothing was saved.
        reason: Why nothing was saved.
    """

    def __init__(
        self,
        error: BaseException,
        step: int,
        checkpoint: Path | None,
        reason: str = "since checkpoint_path=None",
    ):
        self.step = step
        self.checkpoint = checkpoint
        self.reason = reason
        saved = _where_it_is_saved(checkpoint, reason)
        super().__init__(f"Training ended after step {step}. {_described(error)}. {saved}")


def _described(error: BaseException) -> str:
    if isinstance(error, StopIteration):
        return "The activations came to an end"
    if isinstance(error, EvaluationFailed):
        return str(error).rstrip(".")
    return f"{type(error).__name__}: {error}".rstrip(".")


def _where_it_is_saved(checkpoint: Path | None, reason: str) -> str:
    if checkpoint is None:
        return f"Nothing was saved, {reason}."
    return (
        f"Everything is saved in {checkpoint}. To continue, run the same configuration "
        f"with resume_from_checkpoint={str(checkpoint)!r}."
    )


class Interruption:
    """
    Defers SIGINT, SIGTERM and SIGHUP: from defer() to the end of its context they are only noted.

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
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup: keep ignoring it
                self._previous[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(signum)
