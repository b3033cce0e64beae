"""Files and folders that are whole or not there."""

import os
import stat
from pathlib import Path

import pytest

from sae_lens_matryoshka.whole import whole_files, whole_folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_whole_folder_appears_at_once(tmp_path: Path):
    with whole_folder(tmp_path / "a" / "b") as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert contents(tmp_path) == {"a/b/x": b"1"}
    assert os.listdir(tmp_path / "a") == ["b"]
    (tmp_path / "plain").mkdir()
    mode = stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_whole_folder_replaces_another_only_when_it_is_complete(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a") as staging:
        (staging / "new").write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a/old": b"old"}
    with whole_folder(tmp_path / "a") as staging:
        (staging / "new").write_text("new")
    assert contents(tmp_path) == {"a/new": b"new"}
    assert os.listdir(tmp_path) == ["a"]


def test_whole_files_replace_only_their_own_kind_and_together(tmp_path: Path):
    for name in ("weights", "notes"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError), whole_files(tmp_path) as staging:
        (staging / "weights").write_text("half")
        raise OSError("disk full")
    assert contents(tmp_path) == {"notes": b"old", "weights": b"old"}
    with whole_files(tmp_path) as staging:
        (staging / "weights").write_text("new")
        (staging / "cfg").write_text("new")
    assert contents(tmp_path) == {"cfg": b"new", "notes": b"old", "weights": b"new"}
    assert sorted(os.listdir(tmp_path)) == ["cfg", "notes", "weights"]
