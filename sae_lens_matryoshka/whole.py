"""Files and folders on disk: whole or not there."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def write_json(path: Path, content: Any) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
    os.replace(partial, path)


def as_read(content: Any) -> Any:
    """What write_json's file is read as."""
    return json.loads(json.dumps(content, default=str))


def save_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Save a tensor as a whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    torch.save(tensor, partial)
    os.replace(partial, path)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """
    Write a folder that appears under its name only when it is complete.

    Args:
        target: The folder's final path. One that is there already is replaced as a whole, and kept
            when writing fails.

    Yields:
        An empty folder to write into; renamed to target when the block ends without an error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _new_folder(target.parent, target.name)
    try:
        yield staging
        _flush(staging)
        _put_in_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """
    Write files that replace those of a folder only when all of them are complete.

    The folder itself is not renamed, since it may be a mount point and hold files of others.

    Args:
        folder: The folder that the files are for; created when missing.

    Yields:
        An empty folder to write the files into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = _new_folder(folder, "saving")
    try:
        yield staging
        _flush(staging)
        for file in sorted(staging.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _new_folder(parent: Path, name: str) -> Path:
    # mkdtemp would close the folder to everyone else
    folder = parent / f".{name}.{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    return folder


def _flush(folder: Path) -> None:
    """Bring the files to the disk: a rename must not survive a power cut that their data does not."""
    for file in filter(Path.is_file, folder.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _put_in_place(staging: Path, target: Path) -> None:
    if not target.exists():
        os.rename(staging, target)
        return
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.replaced")
    os.rename(target, aside)
    try:
        os.rename(staging, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside)
