"""A dry run replaces and removes nothing but what an earlier dry run wrote and nobody changed since."""

from pathlib import Path
from typing import Any

import pytest
from bench_helpers import WIDTHS, random_sae

from sae_lens_matryoshka.hub import publish
from sae_lens_matryoshka.hub.card import BEGIN, CARD

ID = "layer_1/k_8"


@pytest.fixture(autouse=True)
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check in a process of its own, ten seconds, where the folder is the subject."""
    monkeypatch.setattr("sae_lens_matryoshka.hub.publishing.verify", lambda *_: None)


def dry_run(folder: Path, sae_id: str = ID, seed: int = 0, **options: Any) -> str:
    return publish(
        {sae_id: random_sae(seed, widths=WIDTHS)}, "alice/saes", dry_run=folder, **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "stranger",
    [
        f"{ID}/runner_cfg.json",
        "notes.txt",
        ".hidden",
        CARD,  # as in a clone of a repo that was published
    ],
)
def test_a_folder_that_no_dry_run_wrote(tmp_path: Path, stranger: str):
    file = tmp_path / stranger
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(BEGIN)
    with pytest.raises(ValueError, match="holds files that no dry run wrote") as error:
        dry_run(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == {stranger: BEGIN.encode()}


def test_a_file_in_the_place_of_the_folder(tmp_path: Path):
    file = tmp_path / "out"
    file.write_text("mine")
    with pytest.raises(ValueError, match="is no folder"):
        dry_run(file)
    assert file.read_text() == "mine"


def test_again_over_an_earlier_one(tmp_path: Path):
    dry_run(tmp_path, levels=True)
    assert (tmp_path / ID / f"level_0_width_{WIDTHS[0]}").is_dir()
    dry_run(tmp_path, seed=1, license="mit")
    assert "license: mit" in (tmp_path / CARD).read_text()
    assert not list((tmp_path / ID).glob("level_*"))
    dry_run(tmp_path, "b")
    assert {"b/cfg.json", f"{ID}/cfg.json"} < set(contents(tmp_path))


def test_files_of_others_between_its_own_stay(tmp_path: Path):
    dry_run(tmp_path, levels=True)
    level = f"{ID}/level_0_width_{WIDTHS[0]}"
    mine = ["notes.txt", f"{ID}/notes.txt", f"{level}/notes.txt", f"{ID}/.cfg.json.partial"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    dry_run(tmp_path, seed=1)
    assert all(contents(tmp_path)[name] == b"mine" for name in mine)


@pytest.mark.parametrize(
    "stranger",
    [
        "b/cfg.json",  # where the next one wants to write
        f"{ID}/cfg.json",  # written by a dry run, but changed since
        f"{ID}/runner_cfg.json",  # which the next one would remove
        f"{ID}/level_0_width_{WIDTHS[0]}/cfg.json",
    ],
)
def test_a_strangers_file_in_the_way(tmp_path: Path, stranger: str):
    dry_run(tmp_path)
    (tmp_path / stranger).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stranger).write_text("{}")
    before = contents(tmp_path)
    sae_id = "b" if stranger.startswith("b/") else ID
    with pytest.raises((ValueError, RuntimeError), match=f"{Path(stranger).parent}") as error:
        dry_run(tmp_path, sae_id, seed=1)
    assert "not" in str(error.value) and contents(tmp_path) == before


def test_a_link_to_something_of_the_users(tmp_path: Path):
    dry_run(tmp_path / "out")
    mine = tmp_path / "cfg.json"
    mine.write_text("{}")
    (tmp_path / "out" / "b").mkdir()
    (tmp_path / "out" / "b" / "cfg.json").symlink_to(mine)
    with pytest.raises(ValueError, match="no dry run wrote b/cfg.json"):
        dry_run(tmp_path / "out", "b")
    assert mine.read_text() == "{}"


def test_a_file_where_a_folder_is_needed(tmp_path: Path):
    dry_run(tmp_path)
    (tmp_path / "b").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="no dry run wrote b/"):
        dry_run(tmp_path, "b/c")
    assert contents(tmp_path) == before


def test_words_in_the_card_stay(tmp_path: Path):
    dry_run(tmp_path)
    card = tmp_path / CARD
    card.write_text(card.read_text() + "\nMine.\n")
    dry_run(tmp_path, seed=1)
    assert card.read_text().rstrip().endswith("Mine.")
