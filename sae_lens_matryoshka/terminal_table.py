"""Tables on a terminal, never wider than it: what does not fit goes into a further table below."""

import io
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

BETWEEN = 2
"""Characters between two columns."""
SMALLEST_NAME = 8
"""Characters of the first column, below which nothing is gained by breaking its cells."""


@dataclass(frozen=True)
class Grid:
    """
    A table as text.

    Args:
        header: Headings.
        rows: Cells, as many in each row as there are headings.
        fixed: Leading columns that every part of a table that is too wide repeats.
        left: Leading columns that are aligned left; the others are aligned right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    fixed: int
    left: int


def console() -> Console:
    """Standard output. What its encoding lacks is replaced: no result is lost to an arrow."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, soft_wrap=False)


def fitted(grid: Grid, width: int) -> list[Table]:
    """
    Lay out a grid in tables that are no wider than a terminal.

    Args:
        grid: What to show. Its first column is broken where it is too long; numbers never are.
        width: Columns of the terminal.

    Returns:
        One table, or several that each repeat the fixed columns.
    """
    sizes = [_size(grid, i) for i in range(len(grid.header))]
    fixed, others = list(range(grid.fixed)), list(range(grid.fixed, len(sizes)))
    widest = max((sizes[i] + BETWEEN for i in others), default=0)
    without_name = sum(sizes[i] + BETWEEN for i in fixed[1:])
    sizes[0] = min(sizes[0], max(width - without_name - widest, SMALLEST_NAME))
    room = width - sizes[0] - without_name
    parts: list[list[int]] = [[]]
    for i in others:
        if parts[-1] and sum(sizes[j] + BETWEEN for j in [*parts[-1], i]) > room:
            parts.append([])
        parts[-1].append(i)
    return [_table(grid, [*fixed, *part], sizes) for part in parts]


def _size(grid: Grid, column: int) -> int:
    """Characters that a column needs; headings are broken between words."""
    words = re.split(r" (?![↑↓])", grid.header[column])
    return max(map(cell_len, [*words, *(row[column] for row in grid.rows)]))


def _table(grid: Grid, columns: Sequence[int], sizes: Sequence[int]) -> Table:
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, BETWEEN - 1, 0, 0)
    )  # the box adds one character between columns
    for i in columns:
        table.add_column(
            Text(_broken(grid.header[i], sizes[i])),
            justify="left" if i < grid.left else "right",
            vertical="bottom" if i else "top",
            width=sizes[i],
            overflow="fold",
        )
    for row in grid.rows:
        table.add_row(*(Text(row[i]) for i in columns))  # names are no markup
    return table


def _broken(heading: str, size: int) -> str:
    """A heading on lines that fit; its arrow stays beside its last word."""
    glued = re.sub(r" (?=[↑↓])", "\N{NO-BREAK SPACE}", heading)
    lines = textwrap.wrap(glued, size, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def show_markdown(text: str, to: Console) -> None:
    """
    Print Markdown of ours: its tables fitted to the terminal, all else as it is.

    Args:
        text: Paragraphs and tables that pipe_table wrote; columns aligned left are repeated in every part of a table
            that is too wide.
        to: Where it goes.
    """
    for block in re.split(r"\n{2,}", text.strip()):
        if block.startswith("|"):
            for table in fitted(_grid(block), to.width):
                to.print(table)
                to.print()
        else:
            to.print(Text(block))
            to.print()


def _grid(block: str) -> Grid:
    header, rule, *rows = (
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in block.splitlines()
    )
    left = sum(not cell.endswith(":") for cell in rule)
    return Grid(header, rows, fixed=left, left=left)


def show_notes(notes: Sequence[tuple[str, str]], to: Console) -> None:
    """
    Print footnotes, their further lines indented.

    Args:
        notes: The mark of each and its text.
        to: Where they go.
    """
    for mark, text in notes:
        indent = " " * (len(mark) + 1)
        lines = textwrap.fill(f"{mark} {text}", to.width, subsequent_indent=indent)
        to.print(Text(lines, style="dim"))
    to.print()
