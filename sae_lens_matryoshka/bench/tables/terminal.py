"""The comparison on a terminal: a block per eval, no wider than the terminal, short notes below."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.jobs.output import compared_metrics, versions_line
from sae_lens_matryoshka.bench.jobs.stored_results import OTHER_SETTINGS
from sae_lens_matryoshka.bench.jobs.suite import BenchReport
from sae_lens_matryoshka.bench.tables.cells import Footnotes
from sae_lens_matryoshka.bench.tables.comparison import Comparison
from sae_lens_matryoshka.bench.tables.grids import eval_tables, notes
from sae_lens_matryoshka.bench.tables.table import seeds_of
from sae_lens_matryoshka.terminal_table import Grid, console, fitted, show_notes

LONGEST_REASON = 200
"""Characters of a footnote; the file has all of them."""


def show_report(config: BenchConfig, report: BenchReport) -> None:
    """Print what a benchmark found."""
    to = console()
    to.print(Text(f"{config.model.label}, {config.hook_name}\n", style="bold"))
    comparison = Comparison.of(report.outcomes, compared_metrics(config), config.baseline)
    further = [
        *report.warnings,
        seeds_of(report.outcomes),
        f"{versions_line()}. The notes in full: results.md.",
    ]
    if OTHER_SETTINGS in report.markdown:
        further.insert(0, "Published results were made with other settings: results.md lists them.")
    show(comparison, further, to)


def show(comparison: Comparison, further: Sequence[str], to: Console) -> None:
    """
    Print a comparison.

    Args:
        comparison: What to print.
        further: Notes below its own.
        to: Where it goes.
    """
    footnotes = Footnotes()
    tables = eval_tables(comparison, footnotes)
    for table in tables:
        _show_grid(Text(table.title, style="bold"), table.values, to)
        if table.differences is not None and comparison.baseline is not None:
            title = Text(f"Difference to {comparison.baseline.name}", style="italic")
            _show_grid(title, table.differences, to)
    reasons = [(f"[{n}]", shortened(reason)) for reason, n in footnotes.numbers.items()]
    show_notes([*reasons, *(("-", note) for note in [*notes(comparison, tables), *further])], to)


def _show_grid(title: Text, grid: Grid, to: Console) -> None:
    to.print(title)
    for table in fitted(grid, to.width):
        to.print(table)
        to.print()


def shortened(reason: str) -> str:
    """A reason without its middle where it is long: its end names the error."""
    if len(reason) <= LONGEST_REASON:
        return reason
    half = LONGEST_REASON // 2 - 2
    return f"{reason[:half].rstrip()} ... {reason[-half:].lstrip()}"
