"""Atomic writes: a file, a folder or a set of files is complete or absent."""

import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

# In every hidden folder that is written into, held while its writer lives: it proves who wrote it.
LOCK_FILENAME = "sae_lens_matryoshka.lock"

_PLAN_FILENAME = "plan.json"

_SECONDS_TO_LOCK = 60  # more than it takes to lock a new folder

logger = logging.getLogger(__name__)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")


def as_read(content: Any) -> Any:
    """What write_json's file is read as."""
    return json.loads(json.dumps(content, default=str))


def save_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Save a tensor atomically."""
    with _partial(path) as partial:
        torch.save(tensor, partial)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.sae_lens_matryoshka.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


class SaveError(OSError):
    """Something could not be saved; the message names its path and the cause."""


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """
    Write a folder that appears under its name only when it is complete.

    Args:
        target: The folder's final path. An existing one is replaced as a whole, and kept when
            writing fails.

    Yields:
        An empty folder to write into; renamed to target when the block ends without an error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _workspace(target.parent, target.name) as work:
        new = work / "new"
        new.mkdir()
        yield new
        _flush(new)
        _put_in_place(work, target)


@contextmanager
def whole_files(
    folder: Path, announced_by: str | None = None, outdated: Sequence[str] = ()
) -> Iterator[Path]:
    """
    Write files that replace those of a folder only when all of them are complete.

    The folder itself is not renamed, since it may be a mount point and hold files of others.

    Args:
        folder: The folder that the files are for; created when missing.
        announced_by: Name of the file by which readers recognize the others. It is removed before
            the others are replaced and placed last: at every moment there is the complete old set,
            none, or the complete new one.
        outdated: Names of files that describe the old set; removed with it.

    Yields:
        An empty folder to write the files into.

    Raises:
        SaveError: The files are complete but could not be placed; the message says where they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _workspace(folder, "saving") as work:
        new, complete = work / "new", work / "complete"
        new.mkdir()
        yield new
        _flush(new)
        write_json(work / _PLAN_FILENAME, {"announced_by": announced_by, "outdated": [*outdated]})
        os.rename(new, complete)  # from here on, the next process completes what this one cannot
        try:
            _place(work, folder)
        except OSError as error:
            raise SaveError(
                f"{folder} could not be updated: {error}. The complete files are in {complete}."
            ) from error


def recover(folder: Path) -> None:
    """
    Complete or remove what processes that were killed while writing have left in a folder.

    Only hidden folders of this module, whose writer no longer lives, are touched.

    Args:
        folder: The parent of what whole_folder wrote, or the folder of whole_files.
    """
    for work in folder.glob(".*") if folder.is_dir() else ():
        name = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}", work.name)
        if name is None:
            continue
        if not (work / LOCK_FILENAME).is_file():
            with suppress(OSError):  # killed before it was locked, or after: it is empty then
                if time.time() - work.stat().st_mtime > _SECONDS_TO_LOCK:
                    work.rmdir()
            continue
        with suppress(Timeout, OSError, NotImplementedError):  # its writer lives, or nobody knows
            with FileLock(work / LOCK_FILENAME, timeout=0):
                if (work / "complete").is_dir():
                    _place(work, folder)
                    logger.warning(f"Completed {folder}, which a killed process was updating.")
                elif (work / "old").is_dir() and not (folder / name[1]).exists():
                    os.rename(work / "new", folder / name[1])
                    logger.warning(f"Completed {folder / name[1]} of a killed process.")
                else:
                    logger.warning(f"Removed {work}, which a killed process left unfinished.")
                for part in ("new", "old"):
                    shutil.rmtree(work / part, ignore_errors=True)
                (work / _PLAN_FILENAME).unlink(missing_ok=True)
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def save_errors_named(target: Path, staging: Path) -> Iterator[None]:
    """
    Turn errors of saving into a SaveError, which names the path and the cause.

    torch and safetensors report a full disk as errors of their own formats.

    Args:
        target: What is being saved.
        staging: The folder that is written into meanwhile.
    """
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) and error.errno else _probe(staging) or error
        kind = type(cause).__name__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        raise SaveError(f"{target} could not be saved: {kind}: {reason}.") from error


def _probe(folder: Path) -> OSError | None:
    """The error with which the file system refuses one more megabyte."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


@contextmanager
def _workspace(parent: Path, name: str) -> Iterator[Path]:
    """A hidden folder that is locked while its writer lives; removed unless it holds anything complete."""
    # mkdtemp would close the folder to everyone else
    work = parent / f".{name}.{uuid.uuid4().hex[:8]}"
    work.mkdir()
    lock = FileLock(work / LOCK_FILENAME)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
        yield work
    finally:
        shutil.rmtree(work / "new", ignore_errors=True)
        is_done = not (work / "complete").exists() and not (work / "old").exists()
        if is_done:
            (work / _PLAN_FILENAME).unlink(missing_ok=True)
        lock.release()
        if is_done:
            shutil.rmtree(work, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring the files to the disk: a rename must not survive a power cut that their data does not."""
    for file in filter(Path.is_file, folder.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _put_in_place(work: Path, target: Path) -> None:
    new, old = work / "new", work / "old"
    if not target.exists():
        os.rename(new, target)
        return
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old)


def _place(work: Path, folder: Path) -> None:
    """Move complete files into their folder; may be repeated after having been killed anywhere in it."""
    complete = work / "complete"
    plan = json.loads((work / _PLAN_FILENAME).read_text(encoding="utf-8"))
    announced_by = plan["announced_by"]
    if announced_by is not None and (complete / announced_by).exists():
        for name in (announced_by, *plan["outdated"]):
            (folder / name).unlink(missing_ok=True)
    for file in sorted(complete.iterdir(), key=lambda file: file.name == announced_by):
        os.replace(file, folder / file.name)
    complete.rmdir()
