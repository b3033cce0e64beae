"""Files and folders that are complete or absent."""

import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_disk import fill, small_disk

from sae_lens_matryoshka.atomic_files import (
    LOCK_FILENAME,
    SaveError,
    recover,
    save_errors_named,
    whole_files,
    whole_folder,
    write_json,
)


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


def test_a_users_partial_file_stays(tmp_path: Path):
    (tmp_path / "run.json.partial").write_text("mine")
    write_json(tmp_path / "run.json", {})
    assert contents(tmp_path) == {"run.json": b"{}", "run.json.partial": b"mine"}


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


def test_files_that_cannot_be_placed_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path:
            raise OSError("the disk is read-only")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with (
        pytest.raises(SaveError, match="read-only.*complete files are in") as caught,
        whole_files(tmp_path, announced_by="cfg") as staging,
    ):
        for name in ("cfg", "weights"):
            (staging / name).write_text("new")
    kept = Path(str(caught.value).rpartition(" in ")[2].rstrip("."))
    assert contents(kept) == {"cfg": b"new", "weights": b"new"}


# ---- killed at any moment

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="forks")

# What changes the names in a folder: a process may be killed before and after any of them.
CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir")


def killed_at(number: int, action: Callable[[], Any]) -> bool:
    """Whether an action, in a process of its own, was killed before its change of this number."""
    child = os.fork()
    if child == 0:
        calls: list[str] = []

        def counting(name: str) -> Callable[..., Any]:
            change = getattr(os, name)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                calls.append(name)
                if len(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **kwargs)

            return wrapped

        for name in CHANGES:
            setattr(os, name, counting(name))
        try:
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def write_sae(folder: Path, content: str) -> None:
    with whole_files(folder, announced_by="cfg.json", outdated=["sparsity"]) as staging:
        for name in ("cfg.json", "weights", "a"):
            (staging / name).write_text(content)


def recover_later(folder: Path) -> None:
    for path in folder.glob(".*"):
        os.utime(path, (0, 0))
    recover(folder)


@needs_fork
def test_a_killed_process_leaves_the_old_set_none_or_the_new_one(tmp_path: Path):
    def visible(folder: Path) -> dict[str, bytes]:
        return {name: data for name, data in contents(folder).items() if name[0] != "."}

    old = {"cfg.json": b"old", "weights": b"old", "a": b"old", "sparsity": b"old", "notes": b"mine"}
    new = {"cfg.json": b"new", "weights": b"new", "a": b"new", "notes": b"mine"}
    found: list[str] = []
    folder = tmp_path
    for number in range(1, 100):
        folder = tmp_path / str(number)
        write_sae(folder, "old")
        (folder / "sparsity").write_text("old")
        (folder / "notes").write_text("mine")
        if not killed_at(number, lambda folder=folder: write_sae(folder, "new")):
            break
        left = visible(folder)
        found.append("none" if "cfg.json" not in left else left["cfg.json"].decode())
        if found[-1] != "none":
            assert left == (old if found[-1] == "old" else new)
        recover_later(folder)
        assert contents(folder) in (old, new)
        assert not any(folder.glob(".*"))
        if found[-1] == "none":
            assert contents(folder) == new
    assert visible(folder) == new
    assert {"old", "none", "new"} == set(found)


@needs_fork
@pytest.mark.parametrize("replaces", [False, True])
def test_a_killed_process_leaves_a_complete_folder_or_none(tmp_path: Path, replaces: bool):
    def write(content: str, folder: Path) -> None:
        with whole_folder(folder / "416") as staging:
            for name in ("weights", "state"):
                (staging / name).write_text(content)

    complete = {c: {"416/state": c.encode(), "416/weights": c.encode()} for c in ("old", "new")}
    number = 0
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        if replaces:
            write("old", folder)
        if not killed_at(number, lambda folder=folder: write("new", folder)):
            break
        recover_later(folder)
        assert contents(folder) in (complete["new"], complete["old"] if replaces else {})
        assert [name for name in os.listdir(folder) if name != "416"] == []
    assert number > 3


def test_recover_leaves_what_a_living_process_writes_and_what_it_did_not_write(tmp_path: Path):
    strangers = tmp_path / ".416.1a2b3c4d"
    (strangers / "new").mkdir(parents=True)
    (strangers / "new" / "thesis.tex").write_text("three years")
    named_otherwise = tmp_path / ".venv"
    named_otherwise.mkdir()
    (named_otherwise / LOCK_FILENAME).write_text("")
    before = contents(tmp_path)
    with whole_folder(tmp_path / "416") as staging:
        (staging / "weights").write_text("1")
        recover(tmp_path)
        assert (staging / "weights").exists()
    assert contents(tmp_path) == before | {"416/weights": b"1"}
    recover(tmp_path / "missing")


# ---- errors


def name_error(staging: Path, error: Exception) -> str:
    with pytest.raises(SaveError) as caught, save_errors_named(Path("ck/416"), staging):
        raise error
    return str(caught.value)


def test_errors_of_saving_name_the_path_and_the_cause(tmp_path: Path):
    of_torch = RuntimeError("unexpected pos 64 vs 0")
    assert "ck/416 could not be saved: RuntimeError: unexpected pos" in name_error(
        tmp_path, of_torch
    )
    assert os.listdir(tmp_path) == []
    full = OSError(28, "No space left on device")
    assert "ck/416 could not be saved: OSError: No space left" in name_error(tmp_path, full)


def test_an_error_of_another_format_is_named_by_what_the_disk_says(tmp_path: Path):
    disk = tmp_path / "disk"
    with small_disk(disk, megabytes=1):
        fill(disk)
        with pytest.raises(Exception) as caught:  # noqa: PT011  (torch's own)
            torch.save(torch.zeros(2**18), disk / "state.pt")
        assert "No space left on device" in name_error(disk, caught.value)
        assert sorted(os.listdir(disk)) == ["filler", "state.pt"]
