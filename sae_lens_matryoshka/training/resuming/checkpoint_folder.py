"""Folders of checkpoints: which are complete, and the newest. Imports nothing heavy, for the command line."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sae_lens_matryoshka.loading.sae_folder import SAVED_FILENAMES, STATE_FILENAME

# SAELens's names, kept here since importing it is slow.
TRAINER_STATE_FILENAME = "trainer_state.pt"
STOCK_FILENAMES = (
    "sae_weights.safetensors",
    "cfg.json",
    TRAINER_STATE_FILENAME,
    "activation_scaler.json",
    "activations_store_state.safetensors",
)


def is_checkpoint(folder: Path) -> bool:
    """True if a folder was written as a checkpoint, complete or not."""
    return (folder / TRAINER_STATE_FILENAME).is_file()


def damage(folder: Path) -> str | None:
    """Describe what a checkpoint lacks, or which file of it is damaged; None: it is complete."""
    missing = [name for name in STOCK_FILENAMES if not (folder / name).is_file()]
    if missing:
        return f"lacks {', '.join(missing)}"
    for file in sorted(filter(Path.is_file, folder.iterdir())):
        problem = _damage_of_file(file)
        if problem:
            return f"is damaged: {file.name} ({file.stat().st_size} bytes) {problem}"
    return None


def copy_other_files(checkpoint: Path, replacement: Path) -> None:
    """Copy what is in a checkpoint but no part of it, such as a user's notes, to what will replace it."""
    written = {*STOCK_FILENAMES, *SAVED_FILENAMES, STATE_FILENAME}
    for path in checkpoint.iterdir() if checkpoint.is_dir() else ():
        target = replacement / path.name
        if path.name in written or target.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True)
        else:
            shutil.copy2(path, target, follow_symlinks=False)


def checkpoints_below(folder: Path) -> list[Path]:
    """
    Return the checkpoints of a run, or of all runs, newest first, complete or not.

    Within a run the newest has the most tokens; among runs, the one that was written last.
    """
    runs = [_of_run(run) for run in (folder, *_folders(folder))]
    runs = [run for run in runs if run]
    runs.sort(key=lambda run: (run[0] / TRAINER_STATE_FILENAME).stat().st_mtime, reverse=True)
    return [checkpoint for run in runs for checkpoint in run]


def newest_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint below a folder."""
    return next((path for path in checkpoints_below(folder) if damage(path) is None), None)


def _of_run(folder: Path) -> list[Path]:
    return sorted(filter(is_checkpoint, _folders(folder)), key=_progress, reverse=True)


def _progress(checkpoint: Path) -> tuple[int, bool]:
    """Tokens, from "416" or "final_768"; the final form of the weights is the worse one to resume from."""
    number = checkpoint.name.rpartition("_")[2]
    return (int(number) if number.isdecimal() else -1), checkpoint.name.isdecimal()


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.glob("[!.]*") if path.is_dir())


def _damage_of_file(file: Path) -> str | None:
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="numpy"):  # compares the header with the length
                pass
        elif file.suffix == ".pt":
            with zipfile.ZipFile(file):
                pass
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return f"cannot be read ({error})"
    return None
