import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sae_lens_matryoshka.demo import text as text_module
from sae_lens_matryoshka.demo.text import data_folder, is_heldout, texts

WriteTexts = Callable[[str, Sequence[str]], Path]


def test_texts_are_real_distinct_and_deterministic(small_text: Path):
    train = texts("train", folder=small_text)
    assert len(train) > 4_000
    assert len(set(train)) == len(train)
    assert any("Trump" in text for text in train)
    assert train == texts("train", folder=small_text)


def test_splits_share_no_opening_and_hold_out_one_percent(small_text: Path):
    train = texts("train", folder=small_text)
    heldout = texts("heldout", folder=small_text)
    assert not {t[:100] for t in train} & {t[:100] for t in heldout}
    assert 0.006 < len(heldout) / (len(train) + len(heldout)) < 0.014


def test_split_is_the_same_in_every_process():
    # crc32, unlike hash(), knows no seed: pinned, since the shipped model depends on it
    names = ["alpha", "beta", "gamma", *(f"text number {i}" for i in range(400))]
    assert [name for name in names if is_heldout(name)] == [
        "text number 14",
        "text number 21",
        "text number 120",
        "text number 176",
        "text number 302",
        "text number 309",
    ]


def test_near_copies_count_once_whatever_their_file(write_texts: WriteTexts):
    passage = "A long passage about the rivers of the north. " * 5
    write_texts("2_b", [passage + "First question?", "short", "x", "", "  short "])
    folder = write_texts("1_a", [passage + "Second question?"])
    both = texts("train", folder=folder) + texts("heldout", folder=folder)
    assert sorted(both) == sorted([passage + "Second question?", "short"])


def test_split_depends_on_the_opening_only():
    opening = "".join(f"{i:04d}" for i in range(25))
    assert is_heldout(opening + "one end") == is_heldout(opening + "another end")


def test_long_texts_are_cut(write_texts: WriteTexts, monkeypatch: pytest.MonkeyPatch):
    folder = write_texts("1_a", ["word " * 100_000])  # beyond csv's default field limit
    both = texts("train", folder=folder) + texts("heldout", folder=folder)
    assert [len(text) for text in both] == [2_999]  # 3,000 less a final space
    monkeypatch.setattr(text_module, "MAX_CHARS", 9)
    both = texts("train", folder=folder) + texts("heldout", folder=folder)
    assert both == ["word word"]


def test_line_breaks_inside_texts_survive(write_texts: WriteTexts):
    folder = write_texts("1_a", ['first line\n\n"second", line\r\nthird'])
    assert texts("train", folder=folder) == ['first line\n\n"second", line\r\nthird']


def test_unknown_split_and_empty_folder_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="'train' or 'heldout', got 'test'"):
        texts("test")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no .*csv.zst files"):
        texts("train", folder=tmp_path)


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_module, "find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=re.escape('pip install ".[demo]"')):
        texts("train")


def test_reading_texts_does_not_import_sae_probes():
    code = (
        "import runpy, sys; text = runpy.run_path(sys.argv[1]); text['data_folder']();"
        "sys.exit('sae_probes' in sys.modules)"
    )
    command = [sys.executable, "-c", code, text_module.__file__]
    assert subprocess.run(command, check=False).returncode == 0
    assert len(list(data_folder().glob("*.csv.zst"))) > 100
