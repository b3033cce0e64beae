"""Long tasks in processes of their own, under one progress bar."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from threading import Thread
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")
SECONDS_BETWEEN_LOOKS = 0.5


class Tell(Protocol):
    """To be called after each step, or with how many were done before."""

    def __call__(self, steps: int = 1) -> None: ...


@dataclass(frozen=True)
class _Line:
    """What the processes share: how many steps are done, and whether to go on."""

    done: "Synchronized[int]"
    stop: Event


_line: _Line | None = None  # in a worker: the line to the process that started it


def side_by_side(
    work: Callable[[Task, Tell], Result],
    tasks: Sequence[Task],
    n_processes: int,
    n_steps: int,
    verbose: bool,
) -> list[Result]:
    """
    Do all tasks.

    Args:
        work: Does one; a function of a module. It calls its second argument after each step (see Tell).
        tasks: Can be pickled.
        n_processes: How many at a time. More than one: each computes in a single thread, also where a
            single task is left, so that its numbers are the same.
        n_steps: Of all tasks together, for the progress bar.
        verbose: Whether to show it.

    Returns:
        What work returned, task by task.

    Raises:
        Exception: What a task raised. The others are stopped.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked child may hang in torch's threads
    line = _Line(spawn.Value("q", 0), spawn.Event())
    arguments = (line, n_processes > 1)
    pool = ProcessPoolExecutor(n_processes, spawn, initializer=_start, initargs=arguments)
    try:
        waiting = [pool.submit(_do, work, task) for task in tasks]
        with tqdm(total=n_steps, unit="step", smoothing=0.01, disable=not verbose) as bar:
            _watch(waiting, line, bar)
        return [future.result() for future in waiting]
    finally:
        line.stop.set()
        pool.shutdown(cancel_futures=True)


def _watch(waiting: Sequence["Future[Any]"], line: _Line, bar: "tqdm[Any]") -> None:
    pending = set(waiting)
    while pending:
        done, pending = wait(pending, SECONDS_BETWEEN_LOOKS, return_when=FIRST_EXCEPTION)
        bar.update(line.done.value - bar.n)
        for future in done:
            future.result()  # raises what the task raised


# ---- in a worker


class _StoppedError(Exception):
    """The process that waits for the result has given up."""


def _start(line: _Line, one_thread: bool) -> None:
    global _line
    _line = line
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    Thread(target=_end_with_parent, daemon=True).start()
    if one_thread:
        torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed, it could not say stop


def _do(work: Callable[[Task, Tell], Result], task: Task) -> Result:
    _tell(steps=0)
    return work(task, _tell)


def _tell(steps: int = 1) -> None:
    assert _line is not None
    if _line.stop.is_set():
        raise _StoppedError
    with _line.done.get_lock():
        _line.done.value += steps
