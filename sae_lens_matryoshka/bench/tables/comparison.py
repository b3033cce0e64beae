"""What the tables compare: SAE levels in rows, the evals' metrics in columns, a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_matryoshka.bench.evals.metrics import MEASURES, title_of
from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Outcome
from sae_lens_matryoshka.bench.tables.cells import (
    Column,
    Footnotes,
    difference_cell,
    value_cell,
)
from sae_lens_matryoshka.bench.tables.rows import FVU, L0, Row, group
from sae_lens_matryoshka.bench.tables.statistics import difference


@dataclass(frozen=True)
class Block:
    """
    The metrics of one eval.

    Args:
        eval: Its name.
        columns: L0, FVU and its metrics.
    """

    eval: str
    columns: tuple[Column, ...]

    @property
    def title(self) -> str:
        """The eval in words, with what its numbers are."""
        measure = MEASURES.get(self.eval)
        return f"{title_of(self.eval)}: {measure}" if measure else title_of(self.eval)

    @property
    def is_compared(self) -> bool:
        """Whether differences are taken: those of L0, FVU and the decoder are not."""
        return self.eval != FIDELITY


@dataclass(frozen=True)
class Comparison:
    """
    The outcomes of a benchmark as a reader compares them.

    Args:
        rows: One per SAE level.
        columns: L0 and FVU, then the metrics of the evals.
        baseline: The row that differences are taken to; None for none.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    baseline: Row | None

    @classmethod
    def of(
        cls, outcomes: Sequence[Outcome], metrics: Sequence[Metric], baseline: str | None
    ) -> "Comparison":
        """
        Compare outcomes.

        Args:
            outcomes: What the evals found.
            metrics: Metrics; those with `in_table` whose eval is among the outcomes are columns.
            baseline: SAE whose outermost level the others are compared with; None for no comparison.

        Raises:
            ValueError: The baseline is not among the SAEs, or an eval has two outcomes for one seed.
        """
        rows = group(outcomes)
        columns = [Column.of(metric, rows) for metric in _shown(outcomes, metrics)]
        found = None if baseline is None else _baseline_row(rows, baseline)
        return cls(tuple(rows), tuple(columns), found)

    @property
    def others(self) -> list[Row]:
        """The rows that are compared with the baseline; none without one."""
        return [row for row in self.rows if self.baseline not in (None, row)]

    @property
    def blocks(self) -> list[Block]:
        """The columns by eval; L0 and FVU stand beside the metrics of each."""
        beside = self.columns[:2]
        evals = dict.fromkeys(column.metric.eval for column in self.columns[2:])
        return [
            Block(name, (*beside, *(c for c in self.columns[2:] if c.metric.eval == name)))
            for name in evals or [FIDELITY]
        ]

    def compared_cell(
        self, row: Row, column: Column, footnotes: Footnotes, compact: bool = False
    ) -> str:
        """A row's difference to the baseline; L0, FVU and what has no number as they are."""
        assert self.baseline is not None
        sample, reference = row.sample(column.metric), self.baseline.sample(column.metric)
        if not sample or column.metric.eval == FIDELITY:
            return value_cell(row, column, footnotes, compact)
        if not reference:
            return "no baseline"
        return difference_cell(difference(sample, reference), column, compact)


def _shown(outcomes: Sequence[Outcome], metrics: Sequence[Metric]) -> list[Metric]:
    """L0 and FVU, with the caller's entries where there are any, then the other metrics."""
    fidelity = {m.key: m for m in metrics if m.eval == FIDELITY}
    first = [fidelity.get(metric.key, metric) for metric in (L0, FVU)]
    evals = {outcome.eval for outcome in outcomes}
    return first + [m for m in metrics if m.in_table and m.eval in evals and m not in first]


def _baseline_row(rows: Sequence[Row], baseline: str) -> Row:
    found = [row for row in rows if row.sae == baseline]
    if not found:
        names = ", ".join(dict.fromkeys(row.sae for row in rows))
        raise ValueError(
            f"The baseline {baseline!r} is not among the SAEs: {names}. Name one of them."
        )
    return max(found, key=lambda row: row.level)
