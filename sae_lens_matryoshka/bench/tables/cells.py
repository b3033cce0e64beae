"""The columns and cells of the comparison tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Status
from sae_lens_matryoshka.bench.tables.rows import L0, Row
from sae_lens_matryoshka.bench.tables.statistics import Difference, summarize
from sae_lens_matryoshka.markdown_table import with_arrow

CELL_OF_STATUS: dict[Status, str] = {
    "done": "not reported",
    "not applicable": "n/a",
    "not measurable": "not measurable",
    "failed": "failed",
    "missing": "missing",
}


@dataclass(frozen=True)
class Column:
    """
    A metric's column.

    Args:
        metric: The metric.
        decimals: Decimals of all its numbers.
        seeds: Seeds that the metric's eval ran with.
    """

    metric: Metric
    decimals: int
    seeds: int

    @classmethod
    def of(cls, metric: Metric, rows: Sequence[Row]) -> "Column":
        """The column of a metric, with a number format that suits all rows."""
        samples = [row.sample(metric) for row in rows]
        values = [value for sample in samples for value in sample.values()]
        decimals = 1 if metric.key == L0.key and metric.eval == FIDELITY else _decimals(values)
        seeds = [{outcome.seed for outcome in row.of(metric.eval)} for row in rows]
        return cls(metric, decimals, max(map(len, seeds), default=0))

    @property
    def header(self) -> str:
        """The label with an arrow towards the better direction."""
        return with_arrow(self.metric.label, self.metric.better)

    @property
    def short_header(self) -> str:
        """The header below the eval's title."""
        return with_arrow(self.metric.short or self.metric.label, self.metric.better)


@dataclass
class Footnotes:
    """Reasons, numbered by first use, each once."""

    numbers: dict[str, int] = field(default_factory=dict)

    def mark(self, reasons: Sequence[str]) -> str:
        """The reasons' numbers as a mark behind a cell's text; empty without reasons."""
        found = {self.numbers.setdefault(r, len(self.numbers) + 1) for r in reasons}
        return f" [{', '.join(map(str, sorted(found)))}]" if found else ""

    def text(self) -> str:
        """The list of reasons for below the table."""
        return "\n".join(f"- [{number}] {reason}" for reason, number in self.numbers.items())


def value_cell(row: Row, column: Column, footnotes: Footnotes, compact: bool = False) -> str:
    """Mean ± standard deviation over seeds, or why there is none; compact without spaces."""
    sample = row.sample(column.metric)
    outcomes, key = row.of(column.metric.eval), column.metric.key
    reasons = [o.reason for o in outcomes if o.status != "done" and o.reason]
    notes = [o.notes[key] for o in outcomes if key in o.notes]
    mark = footnotes.mark([_one_line(reason) for reason in reasons + notes])
    if not sample:
        return _empty_cell(row, column.metric) + mark
    summary = summarize(sample.values())
    cell = _number(summary.mean, column.decimals)
    if summary.sd is not None and not math.isnan(summary.mean):
        plus_minus = "±" if compact else " ± "
        cell += f"{plus_minus}{_number(summary.sd, column.decimals)}"
    if len(sample) < column.seeds and None not in sample:
        cell += f" (n={len(sample)})"
    return cell + mark


def difference_cell(found: Difference, column: Column, compact: bool = False) -> str:
    """A signed difference with its interval, where it has one; compact with half its width."""
    cell = _signed(found.value, column.decimals)
    if found.interval is not None and not math.isnan(found.value):
        low, high = found.interval
        if compact:
            cell += f"±{_number((high - low) / 2, column.decimals)}"
        else:
            cell += f" [{_signed(low, column.decimals)}, {_signed(high, column.decimals)}]"
    return cell + (f" (n={found.n})" if 0 < found.n < column.seeds else "")


def _empty_cell(row: Row, metric: Metric) -> str:
    outcomes = row.of(metric.eval)
    unfinished = [o for o in outcomes if o.status != "done"]
    if unfinished:
        return CELL_OF_STATUS[unfinished[0].status]
    if any(metric.key in o.notes for o in outcomes):
        return CELL_OF_STATUS["not measurable"]
    if metric.eval == FIDELITY:
        return "not measured"
    return CELL_OF_STATUS["done"] if outcomes else "not run"


def _decimals(values: Sequence[float]) -> int:
    """Three for scores; fewer for large numbers, more for a column of tiny ones."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0:
        return 3
    magnitude = math.floor(math.log10(largest))  # 0 for 1 to 9.99
    return min(max(3 - max(magnitude, 0) - min(magnitude + 2, 0), 0), 9)


def _number(value: float, decimals: int) -> str:
    return "NaN" if math.isnan(value) else f"{value:.{decimals}f}"


def _signed(value: float, decimals: int) -> str:
    return "NaN" if math.isnan(value) else f"{value:+.{decimals}f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
