"""Commands delete and replace only what this package wrote; a marker file in each folder proves it."""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sae_lens_matryoshka.atomic_files import whole_files, whole_folder, write_json
from sae_lens_matryoshka.settings.yaml_file import ConfigError

MARKER = ".sae_lens_matryoshka.json"
# What versions that left no marker wrote into folders that they replaced.
_WITHOUT_MARKER = (
    *("plots.html", "*.png", "*_eval_results.json", "job.json"),
    *("*.parquet", "SOURCES.md", ".made_by"),
    *("cfg.json", "runner_cfg.json", "*.safetensors", "*.pt", "activation_scaler.json"),
    *("synthetic_model_config.json", "hierarchy.json", "configuration.json"),
)


def claim(
    folder: Path,
    kind: str,
    names: Collection[str],
    record: str | None = None,
    replaced: Collection[str] = (),
) -> None:
    """
    Reserve names in an output folder: from now on the command may write and replace them.

    Args:
        folder: The output folder; created when missing. Other files in it are not touched.
        kind: The command, or the kind of benchmark.
        names: The files and folders that the command writes.
        record: The file that holds the configuration, by which a folder that a version without
            markers wrote is recognized.
        replaced: Patterns of the folders below that such a version replaced or deleted.

    Raises:
        ConfigError: One of the names exists and another kind of command, or somebody else, wrote it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[str]] = _marker(folder).get("names", {})
    ours = set(written.get(kind, ()))
    if not written and record is not None and _wrote(folder / record, kind):
        ours = set(names)
        for pattern in replaced:
            for path in list(folder.glob(pattern)):
                _mark_old(path)
    foreign = [name for name in names if name not in ours and _holds_something(folder / name)]
    if foreign:
        raise ConfigError(
            f"output: {folder} already holds {', '.join(foreign)}, which would be replaced, but which this "
            "command is not known to have written. Give another folder as output, or move them away."
        )
    _mark(folder, {"names": {**written, kind: sorted(ours.union(names))}})


def check_replaceable(folder: Path) -> None:
    """
    Check that a folder may be replaced: missing, empty, or written by this package alone.

    Raises:
        ConfigError: It holds something else.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} would be replaced, but is no folder of its own. Move it away.")
    written = _marker(folder).get("contents", ())
    foreign = [name for name in _contents(folder) if name not in written]
    if foreign:
        raise ConfigError(
            f"{folder} would be replaced, but holds files that this package did not write: "
            f"{', '.join(foreign[:3])}{' and more' if len(foreign) > 3 else ''}. Move them away."
        )


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """
    Write a complete folder in the place of one that this package wrote.

    Args:
        target: The folder's final path.

    Yields:
        An empty folder to write into.

    Raises:
        ConfigError: The present folder holds something else; nothing is touched.
    """
    check_replaceable(target)
    with whole_folder(target) as staging:
        yield staging
        _mark(staging, {"contents": _contents(staging)})
        check_replaceable(target)  # what came while it was being written stays, too


def new_scratch(folder: Path) -> None:
    """
    Create a folder for temporary files, or go on in one that this package created.

    Raises:
        ConfigError: Somebody else's files are in it.
    """
    if "contents" in _marker(folder):
        return
    with replaced_folder(folder):
        pass


def remove_scratch(folder: Path, contents: Sequence[str]) -> None:
    """
    Delete temporary files; other files, and a folder that `new_scratch` did not create, stay.

    Args:
        folder: The folder.
        contents: Patterns of the names to delete.
    """
    if folder.is_symlink() or "contents" not in _marker(folder):
        return
    foreign = False
    for path in list(folder.iterdir()):
        if path.name != MARKER and not any(fnmatch(path.name, pattern) for pattern in contents):
            foreign = True
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    if not foreign:
        shutil.rmtree(folder)  # the marker last


def remove_folder(folder: Path) -> None:
    """Delete a folder that `replaced_folder` wrote, if nothing else is in it."""
    if "contents" in _marker(folder):
        check_replaceable(folder)
        shutil.rmtree(folder)


def _marker(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _mark(folder: Path, content: Mapping[str, Any]) -> None:
    note = "Written by sae-lens-matryoshka, which may replace or delete what is listed here."
    with whole_files(folder) as staging:
        write_json(staging / MARKER, {"note": note, **content})


def _contents(folder: Path) -> list[str]:
    """Paths of everything in a folder but its marker; links are not followed."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        found += [str(Path(parent, name).relative_to(folder)) for name in (*folders, *files)]
    return sorted(name for name in found if Path(name).name != MARKER)


def _holds_something(path: Path) -> bool:
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _wrote(record: Path, kind: str) -> bool:
    try:
        return json.loads(record.read_text(encoding="utf-8"))["config"]["kind"] == kind
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _mark_old(folder: Path) -> None:
    """Mark what a version without markers wrote, file by file; other files stay unlisted."""
    if folder.is_symlink() or not folder.is_dir():
        return
    known = [name for name in _contents(folder) if _is_known(folder / name)]
    if any(not (folder / name).is_dir() for name in known):
        _mark(folder, {"contents": known})


def _is_known(path: Path) -> bool:
    return path.is_dir() or any(fnmatch(path.name, pattern) for pattern in _WITHOUT_MARKER)
