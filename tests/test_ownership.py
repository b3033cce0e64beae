"""What a command deletes or replaces is what this package wrote; everything else stays."""

import json
from pathlib import Path

import pytest

from sae_lens_matryoshka.ownership import (
    check_replaceable,
    claim,
    new_scratch,
    remove_folder,
    remove_scratch,
    replaced_folder,
)
from sae_lens_matryoshka.settings.yaml_file import ConfigError

NAMES = ("results.md", "plots", "work")


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and its text."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write(folder: Path, text: str) -> None:
    """Replace a folder by one with a single file."""
    with replaced_folder(folder) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "a.txt").write_text(text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_a_name_that_is_taken_stops_the_command(tmp_path: Path, name: str, kind: str):
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    if kind == "file":
        (output / name).write_text("mine")
    elif kind == "folder":
        (output / name / "clone").mkdir(parents=True)
        (output / name / "clone" / "mine.txt").write_text("mine")
    else:
        (output / name).symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=f"already holds {name}"):
        claim(output, "toy", NAMES, "results.json")
    assert tree(tmp_path) == before


def test_other_files_in_the_output_folder_are_no_obstacle(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "plots").mkdir()  # empty: nothing can be lost
    for _ in range(2):
        claim(tmp_path, "toy", NAMES, "results.json")
        (tmp_path / "results.md").write_text("ours")
        write(tmp_path / "plots", "ours")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_results_of_another_kind_are_not_replaced(tmp_path: Path):
    claim(tmp_path, "toy", NAMES, "results.json")
    (tmp_path / "results.md").write_text("the toy's")
    with pytest.raises(ConfigError, match="already holds results.md"):
        claim(tmp_path, "other", ("results.md",), "run.json")
    claim(tmp_path, "other", ("runs",), "run.json")
    claim(tmp_path, "toy", NAMES, "results.json")


def test_output_of_a_version_without_markers_is_recognized(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"kind": "toy"}}))
    (tmp_path / "results.md").write_text("ours")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.png").write_text("ours")
    (tmp_path / "work" / "tpp").mkdir(parents=True)
    (tmp_path / "work" / "tpp" / "job.json").write_text("{}")
    (tmp_path / "work" / "clone").mkdir()
    (tmp_path / "work" / "clone" / "mine.txt").write_text("mine")
    claim(tmp_path, "toy", NAMES, "run.json", replaced=("plots", "work/*"))
    write(tmp_path / "plots", "new")
    for folder in (tmp_path / "work").iterdir():
        remove_scratch(folder, ["job.json"])
    assert list(tree(tmp_path / "plots"))[1:] == ["inner/a.txt"]
    assert tree(tmp_path / "work") == {"clone/mine.txt": "mine"}


def test_a_users_file_among_old_files_is_not_replaced(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"kind": "toy"}}))
    (tmp_path / "plots").mkdir()
    for name in ("a.png", "mine.txt"):
        (tmp_path / "plots" / name).write_text("")
    claim(tmp_path, "toy", NAMES, "run.json", replaced=("plots",))
    with pytest.raises(ConfigError, match="plots would be replaced.*: mine.txt"):
        check_replaceable(tmp_path / "plots")


def test_a_written_folder_is_replaced_as_a_whole(tmp_path: Path):
    for text in ("first", "second"):
        write(tmp_path / "folder", text)
    assert tree(tmp_path / "folder")["inner/a.txt"] == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["mine.txt", "inner/mine.txt", "mine/deep/mine.txt"])
def test_a_users_file_in_a_written_folder_stops_the_replacement(tmp_path: Path, name: str):
    write(tmp_path / "folder", "first")
    mine = tmp_path / "folder" / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    before = tree(tmp_path)
    for act in (lambda f: write(f, "second"), remove_folder, check_replaceable):
        with pytest.raises(ConfigError, match=str(tmp_path / "folder")):
            act(tmp_path / "folder")
    assert tree(tmp_path) == before
    mine.unlink()


def test_a_file_that_comes_while_the_folder_is_written_stays(tmp_path: Path):
    write(tmp_path / "folder", "first")
    with (
        pytest.raises(ConfigError, match="mine.txt"),
        replaced_folder(tmp_path / "folder") as staging,
    ):
        (staging / "a.txt").write_text("second")
        (tmp_path / "folder" / "mine.txt").write_text("mine")
    assert tree(tmp_path / "folder")["mine.txt"] == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_without_a_marker_is_left_alone(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for name in ("folder", "link", "file"):
        with pytest.raises(ConfigError):
            write(tmp_path / name, "ours")
        remove_folder(tmp_path / name)
        remove_scratch(tmp_path / name, ["*"])
    with pytest.raises(ConfigError):
        new_scratch(tmp_path / "folder")
    assert tree(tmp_path) == before


def test_temporary_files_go_and_a_users_file_among_them_stays(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text.txt").write_text("mine")
    scratch = tmp_path / "scratch"
    for users in (True, False):
        new_scratch(scratch)
        new_scratch(scratch)  # as after an interruption
        (scratch / "cache").mkdir()
        (scratch / "cache" / "big.pt").write_text("ours")
        (scratch / "cache" / "data").symlink_to(tmp_path / "data")
        (scratch / "job.json").write_text("ours")
        if users:
            (scratch / "mine.txt").write_text("mine")
        remove_scratch(scratch, ["cache*", "job.json*"])
        kept = {name for name in tree(scratch) if not name.startswith(".")} if users else set()
        assert kept == ({"mine.txt"} if users else set())
        (scratch / "mine.txt").unlink(missing_ok=True)
    assert not scratch.exists()
    assert tree(tmp_path / "data") == {"text.txt": "mine"}


def test_temporary_files_behind_a_link_stay(tmp_path: Path):
    new_scratch(tmp_path / "scratch")
    (tmp_path / "scratch" / "cache").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    remove_scratch(tmp_path / "link", ["cache"])
    assert (tmp_path / "scratch" / "cache").exists()
