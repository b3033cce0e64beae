"""The outcomes as a CSV file of every number and as Markdown tables to compare SAEs in."""

import csv
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sae_lens_matryoshka.atomic_files import whole_files
from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Outcome
from sae_lens_matryoshka.bench.tables.cells import Column, Footnotes, value_cell
from sae_lens_matryoshka.bench.tables.comparison import Comparison
from sae_lens_matryoshka.bench.tables.rows import Row
from sae_lens_matryoshka.markdown_table import pipe_table

CSV_HEADER = (
    "sae",
    "level",
    "width",
    "seed",
    "eval",
    "metric",
    "value",
    "status",
    "reason",
    "seconds",
    "published",
)

READING = (
    "↑ higher is better, ↓ lower is better. Cells are the mean ± sample standard deviation over "
    "seeds (n of them, where the eval ran with more). L0: active latents per token. "
    "FVU: fraction of variance unexplained. Both are measured without the tokens BOS, EOS and PAD."
)

LEVELS_READING = (
    "A level is the SAE cut to its first latents, as many as its width; "
    "the outermost level is the whole SAE."
)

DIFFERENCE_READING = (
    "Intervals are 95 %, paired over seeds (Student's t; a published value has no seed and is held "
    "fixed). They cover the evals' own randomness (probes, data draws), not that of training "
    "another SAE. A difference without an interval rests on fewer than two seeds in common. "
    "n: seeds in common, where the eval ran with more. "
    "L0, FVU and the decoder max cosine are the values themselves, not differences."
)


# ---- CSV


def write_csv(outcomes: Sequence[Outcome], metrics: Sequence[Metric], path: Path) -> None:
    """
    Write every number of the outcomes, one per row; an outcome without numbers has one row too.

    Sorted by first appearance of the SAE, level, eval, seed and metric; evals and metrics in the order of `metrics`, the others after them by name. Numbers
    have all their digits; no seed is an empty cell.

    Args:
        outcomes: What the evals found.
        metrics: Metrics whose order the rows follow; those without an entry are written as well.
        path: The file, replaced as a whole.
    """
    with (
        whole_files(path.parent) as staging,
        (staging / path.name).open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for outcome in _sorted(outcomes, metrics):
            writer.writerows(_csv_rows(outcome, metrics))


def _sorted(outcomes: Sequence[Outcome], metrics: Sequence[Metric]) -> list[Outcome]:
    saes = list(dict.fromkeys(outcome.sae for outcome in outcomes))
    evals = _ordered({o.eval for o in outcomes}, [FIDELITY, *(m.eval for m in metrics)])

    def place(outcome: Outcome) -> tuple[int, int, int, int]:
        seed = -1 if outcome.seed is None else outcome.seed
        return saes.index(outcome.sae), outcome.level, evals.index(outcome.eval), seed

    return sorted(outcomes, key=place)


def _csv_rows(outcome: Outcome, metrics: Sequence[Metric]) -> Iterator[list[str]]:
    known = [m.key for m in metrics if m.eval == outcome.eval]
    keys = _ordered({**outcome.metrics, **outcome.notes}, known)
    for key in keys or [""]:
        is_number = key in outcome.metrics
        note = outcome.notes.get(key, outcome.reason)
        yield [
            outcome.sae,
            str(outcome.level),
            str(outcome.width),
            "" if outcome.seed is None else str(outcome.seed),
            outcome.eval,
            key,
            repr(float(outcome.metrics[key])) if is_number else "",
            outcome.status if is_number or not key else "not measurable",
            note,
            repr(float(outcome.seconds)),
            str(outcome.published).lower(),
        ]


def _ordered(names: Collection[str], known: Sequence[str]) -> list[str]:
    """Sort names: the known ones in their own order, then the others by name."""
    place = {name: i for i, name in reversed(list(enumerate(known)))}
    return sorted(names, key=lambda name: (place.get(name, len(known)), name))


# ---- Markdown


def markdown(
    outcomes: Sequence[Outcome], metrics: Sequence[Metric], baseline: str | None, versions: str
) -> str:
    """
    Write the tables: mean ± standard deviation per SAE level, and differences to a baseline.

    Args:
        outcomes: What the evals found.
        metrics: Metrics; those with `in_table` whose eval is among the outcomes are columns.
        baseline: SAE whose outermost level the others are compared with; None for no comparison.
        versions: A line on the software that gave the numbers.

    Raises:
        ValueError: The baseline is not among the SAEs, or an eval has two outcomes for one seed.
    """
    comparison = Comparison.of(outcomes, metrics, baseline)
    footnotes = Footnotes()
    parts = ["## Comparison", *_values(comparison, footnotes)]
    if comparison.baseline is not None and comparison.others:
        parts += _differences(comparison, comparison.baseline, footnotes)
    parts += [_caveats(comparison.columns), seeds_of(outcomes), versions]
    return "\n\n".join(part for part in parts if part) + "\n"


def _values(comparison: Comparison, footnotes: Footnotes) -> list[str]:
    cells = [
        [*_place(row), *(value_cell(row, column, footnotes) for column in comparison.columns)]
        for row in comparison.rows
    ]
    is_nested = any(row.levels > 1 for row in comparison.rows)
    reading = f"{READING} {LEVELS_READING}" if is_nested else READING
    return [_table(comparison.columns, cells), footnotes.text(), reading]


def _differences(comparison: Comparison, baseline: Row, footnotes: Footnotes) -> list[str]:
    columns = comparison.columns
    cells = [
        [*_place(row), *(comparison.compared_cell(row, column, footnotes) for column in columns)]
        for row in comparison.others
    ]
    level = "" if baseline.levels == 1 else f", level {baseline.level_name}"
    which = f"Each row less {baseline.name}{level}, {baseline.width} latents."
    return [
        f"## Difference to {baseline.name}",
        _table(columns, cells),
        f"{which} {DIFFERENCE_READING}",
    ]


def _place(row: Row) -> list[str]:
    return [row.name, row.level_name, str(row.width)]


def _table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    header = ["SAE", "level", "width", *(column.header for column in columns)]
    return pipe_table(header, cells, text_columns=2)


def _caveats(columns: Sequence[Column]) -> str:
    labels: dict[str, list[str]] = {}
    for column in columns:
        if column.metric.caveat:
            labels.setdefault(column.metric.caveat, []).append(column.metric.label)
    lines = [f"- {', '.join(group)}: {caveat}" for caveat, group in labels.items()]
    return "\n".join(["Before you compare:", "", *lines]) if lines else ""


def seeds_of(outcomes: Sequence[Outcome]) -> str:
    """The number of seeds, and which evals have fewer."""
    seeds: dict[str, set[int | None]] = {}
    for outcome in outcomes:
        if not outcome.published:
            seeds.setdefault(outcome.eval, set()).add(outcome.seed)
    evals: dict[tuple[int, ...], list[str]] = {}
    for name, found in seeds.items():
        key = tuple(sorted(seed for seed in found if seed is not None))
        evals.setdefault(key, []).append(name)
    phrases = [
        f"{len(found)} ({', '.join(map(str, found))}) for {', '.join(names)}"
        if found
        else f"none for {', '.join(names)}"
        for found, names in evals.items()
    ]
    return f"Seeds: {'; '.join(phrases)}." if phrases else "Seeds: none, all results are published."
