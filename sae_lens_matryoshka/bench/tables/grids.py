"""The comparison as one small table per eval, for the terminal and for the page of plots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sae_lens_matryoshka.bench.tables.cells import Column, Footnotes, value_cell
from sae_lens_matryoshka.bench.tables.comparison import Block, Comparison
from sae_lens_matryoshka.bench.tables.rows import Row
from sae_lens_matryoshka.terminal_table import Grid

ARROWS = "↑ higher is better, ↓ lower is better."
BESIDE = (
    "L0: active latents per token. FVU: fraction of variance unexplained. Both leave out the tokens BOS, "
    "EOS and PAD."
)
LEVELS = "Level 0 is the innermost, the last one the whole SAE."
SPREAD = "± standard deviation over the seeds of the eval."
HALF = "Differences: ± half of the 95 % interval, paired over seeds; it does not cover training another SAE."
FEWER = "n: seeds behind a number, where the eval ran with more."


@dataclass(frozen=True)
class EvalTable:
    """
    What is known of one eval.

    Args:
        eval: Its name.
        title: Its name in words, with what its numbers are.
        values: L0, FVU and its metrics of all SAE levels.
        differences: The same less the baseline; None without one.
    """

    eval: str
    title: str
    values: Grid
    differences: Grid | None


def eval_tables(comparison: Comparison, footnotes: Footnotes) -> list[EvalTable]:
    """
    Lay out a comparison.

    Args:
        comparison: The comparison.
        footnotes: Takes up why numbers are missing.
    """
    return [_eval_table(comparison, block, footnotes) for block in comparison.blocks]


def _eval_table(comparison: Comparison, block: Block, footnotes: Footnotes) -> EvalTable:
    def value(row: Row, column: Column) -> str:
        return value_cell(row, column, footnotes, compact=True)

    def difference(row: Row, column: Column) -> str:
        return comparison.compared_cell(row, column, footnotes, compact=True)

    values = _grid(comparison.rows, block.columns, value)
    differences = None
    if comparison.others and block.is_compared:
        differences = _grid(comparison.others, block.columns, difference)
    return EvalTable(block.eval, block.title, values, differences)


def _grid(
    rows: Sequence[Row], columns: Sequence[Column], cell: Callable[[Row, Column], str]
) -> Grid:
    """Each SAE's name stands in its first row only; levels are left out where there are none."""
    is_nested = any(row.levels > 1 for row in rows)
    header = ["SAE", *(["level"] if is_nested else []), "width"]
    lines: list[list[str]] = []
    names = [row.name for row in rows]
    for i, row in enumerate(rows):
        name = row.name if names.index(row.name) == i else ""
        level = [row.short_level_name] if is_nested else []
        lines.append([name, *level, str(row.width), *(cell(row, column) for column in columns)])
    fixed = len(header) + len(columns[:2])  # L0 and FVU stand beside every number
    return Grid([*header, *(c.short_header for c in columns)], lines, fixed, len(header) - 1)


def notes(comparison: Comparison, tables: Sequence[EvalTable]) -> list[str]:
    """
    How to read the tables, and what a reader must know of their metrics, each once.

    Args:
        comparison: The comparison.
        tables: Its tables; what none of their cells needs is left out.
    """
    grids = [grid for t in tables for grid in (t.values, t.differences) if grid is not None]
    cells = " ".join(cell for grid in grids for row in grid.rows for cell in row)
    is_nested = any(row.levels > 1 for row in comparison.rows)
    values = " ".join(cell for t in tables for row in t.values.rows for cell in row)
    reading = [
        ARROWS,
        BESIDE,
        LEVELS if is_nested else "",
        f"Values: mean {SPREAD}" if "±" in values else "",
        HALF if "±" in cells and comparison.others else "",
        FEWER if "(n=" in cells else "",
    ]
    about = [column.metric.note for column in comparison.columns]
    return list(dict.fromkeys(filter(None, [*reading, *about])))
