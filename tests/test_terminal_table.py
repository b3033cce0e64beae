"""Tables on a terminal: never wider than it, and nothing lost."""

import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from sae_lens_matryoshka.markdown_table import pipe_table
from sae_lens_matryoshka.terminal_table import (
    Grid,
    console,
    fitted,
    show_markdown,
    show_notes,
)

HEADER = ["SAE", "width", "L0", "absorption fraction ↓", "cross-entropy recovered ↑", "k=1 ↑"]
ROWS = [
    ["flat", "1024", "24.1", "0.521±0.004", "0.954", "0.629±0.015"],
    ["nested", "1024", "24.0", "0.437±0.018", "0.942", "not measured [12]"],
]


def shown(grid: Grid, width: int) -> list[list[str]]:
    """The lines of each table."""
    out: list[list[str]] = []
    for table in fitted(grid, width):
        to = Console(width=width, file=io.StringIO())
        to.print(table)
        assert isinstance(to.file, io.StringIO)
        out.append(to.file.getvalue().splitlines())
    return out


def test_what_fits_is_one_table_with_headings_broken_between_words():
    [lines] = shown(Grid(HEADER, ROWS, fixed=3, left=1), 80)
    assert len(lines) == 2 + 1 + 2
    heading = " ".join(lines[0].split() + lines[1].split())
    assert heading == "absorption cross-entropy SAE width L0 fraction ↓ recovered ↑ k=1 ↑"


def test_what_does_not_fit_goes_into_further_tables_with_the_fixed_columns():
    parts = shown(Grid(HEADER, ROWS, fixed=3, left=1), 50)
    assert len(parts) == 2
    for lines in parts:
        assert lines[-1].split()[:3] == ["nested", "1024", "24.0"]
    assert "0.437±0.018" in parts[0][-1] and "not measured [12]" in parts[1][-1]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(50, 130),
    st.lists(st.text("ab-.[]漢", min_size=1, max_size=70), min_size=1, max_size=3),
    st.integers(1, 9),
)
def test_no_line_is_wider_than_the_terminal_and_no_cell_is_lost(
    width: int, names: list[str], columns: int
):
    numbers = [f"+{i}.{i:03d}±0.0{i:02d} (n=2)" for i in range(columns)]
    header = ["SAE", "L0", *(f"first part of metric {i} ↑" for i in range(columns))]
    rows = [[name, "24.1", *numbers] for name in names]
    parts = shown(Grid(header, rows, fixed=2, left=1), width)
    lines = [line for part in parts for line in part]
    assert max(map(cell_len, lines)) <= width
    assert all("\n".join(lines).count(number) == len(rows) for number in numbers)
    assert "…" not in "".join(lines)


def test_names_are_no_markup():
    [lines] = shown(Grid(["SAE", "L0"], [["[red]x[/red]", "1"]], fixed=1, left=1), 80)
    assert "[red]x[/red]" in lines[-1]


def test_markdown_keeps_its_text_and_its_tables_fit(capsys: pytest.CaptureFixture[str]):
    header = ["SAE", *(f"measure {i} ↑" for i in range(12))]
    rows = [["a|b", *("0.123 ± 0.004" for _ in range(12))]]
    text = f"Model [mini].\n\n{pipe_table(header, rows, text_columns=1)}\n\nOne seed.\n"
    show_markdown(text, Console(width=80, highlight=False))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("0.123 ± 0.004") == 12 and out.count("a|b") > 1
    assert out.startswith("Model [mini].") and out.rstrip().endswith("One seed.")


def test_notes_are_indented_and_not_wider(capsys: pytest.CaptureFixture[str]):
    show_notes([("[1]", "word " * 30), ("-", "short")], Console(width=60))
    first, second, third, fourth, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("[1] word") and second.startswith("    word")
    assert max(map(len, (first, second, third))) <= 60 and fourth == "- short"


def test_an_encoding_without_arrows_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console().print("FVU ↓ 0.2±0.1")
    sys.stdout.flush()
    assert raw.getvalue().startswith(b"FVU ? 0.2?0.1")
