"""A dry run: a folder in the place of a repo of the Hub, in which only its own files are replaced."""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from sae_lens_matryoshka.atomic_files import write_json
from sae_lens_matryoshka.hub.card import CARD
from sae_lens_matryoshka.hub.repo import Repo, files_below
from sae_lens_matryoshka.levels.fingerprint import hash_files

# beside a dry run's files, in the folder of the Hub's client, which it never uploads
RECORD = Path(".cache", "huggingface", "sae_lens_matryoshka_dry_run.json")


class FolderRepo(Repo):
    """
    A local folder in the place of a repo: a dry run.

    A record in it lists what dry runs wrote, with hashes. Nothing else is ever replaced or removed.

    Args:
        folder: A new or empty folder, or that of an earlier dry run.

    Raises:
        ValueError: It holds something else, which must not be overwritten.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.written: dict[str, str] = {}  # hashes by path
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            try:
                self.written = dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
            except (OSError, ValueError):
                raise ValueError(
                    f"dry_run={str(folder)!r} holds files that no dry run wrote. Give a new folder."
                ) from None

    @override
    def create_if_missing(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @override
    def files(self) -> list[str]:
        found = (path.relative_to(self.folder) for path in files_below(self.folder))
        return [path.as_posix() for path in found if path != RECORD]

    @override
    def read(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8-sig")

    @override
    def commit(self, tree: Path, removed: Sequence[str], message: str) -> str:
        added = [source.relative_to(tree).as_posix() for source in files_below(tree)]
        self._refuse_strangers([*added, *removed])
        for path in added:
            self._put(tree / path, path)
            self.written[path] = _hash(tree / path)
        for path in removed:
            (self.folder / path).unlink()
            _remove_empty(self.folder, (self.folder / path).parent)
            del self.written[path]
        write_json(self.folder / RECORD, self.written)
        return str(self.folder)

    def _refuse_strangers(self, paths: Sequence[str]) -> None:
        strangers = [path for path in paths if not self._is_ours(path)]
        if strangers:
            raise ValueError(
                f"dry_run={str(self.folder)!r}: no dry run wrote {', '.join(strangers)}, or it was changed "
                "since. Move it away or give a new folder; nothing was written."
            )

    def _is_ours(self, path: str) -> bool:
        """Whether a path is free, or holds what a dry run wrote."""
        target = self.folder / path
        if path == CARD and target.is_file():  # what was written by hand in it is kept
            return True
        if target.is_file() and not target.is_symlink():
            return self.written.get(path) == _hash(target)
        above = [folder for folder in target.parents if folder.is_relative_to(self.folder)]
        return not os.path.lexists(target) and all(f.is_dir() or not f.exists() for f in above)

    def _put(self, source: Path, path: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        shutil.copyfile(source, partial)
        os.replace(partial, target)


def _hash(file: Path) -> str:
    return hash_files(file.parent, (file.name,))


def _remove_empty(root: Path, folder: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
