"""The tables of `kind: synthetic`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from research.ground_truth.synthetic_measures import Measures
from sae_lens_matryoshka.markdown_table import pipe_table, spread, with_arrow

Runs = Mapping[str, Sequence[Measures]]  # arm -> one per seed, in the same order for all


@dataclass(frozen=True)
class _Column:
    """
    One column.

    Args:
        name: The measure.
        heading: Above it.
        better: "higher", "lower" or None.
        digits: After the point.
        scale: What a value is multiplied by.
    """

    name: str
    heading: str
    better: str | None
    digits: int
    scale: float = 1.0


COLUMNS = (
    _Column("f1", "F1", "higher", 3),
    _Column("mcc", "MCC", "higher", 3),
    _Column("uniqueness", "uniqueness", "higher", 3),
    _Column("precision", "precision", "higher", 3),
    _Column("recall", "recall", "higher", 3),
    _Column("explained_variance", "explained variance", "higher", 3),
    _Column("dead", "dead latents, %", "lower", 2, scale=100),
    _Column("absorption", "absorption rate", "lower", 3),
    _Column("n_parents", "of parents", None, 1),
    _Column("l0", "L0", None, 2),
    _Column("f1_in_training", "F1 of the training object", None, 3),
)
PAIRED = ("f1", "mcc", "uniqueness", "f1_in_training")
NOT_AVAILABLE = "n/a"


def tables(runs: Runs, baseline: str | None) -> str:
    """
    Every arm's measures and, with a baseline, what the other arms differ by.

    Args:
        runs: Of the same seeds for all arms.
        baseline: An arm.
    """
    text = f"{_measures(runs)}\n\n{_note(len(next(iter(runs.values()))))}\n"
    others = [arm for arm in runs if arm != baseline]
    if baseline is not None and others:
        text += f"\n{_differences(runs, baseline, others)}\n\n{_DIFFERENCES_NOTE}\n"
    return text


def _note(n_seeds: int) -> str:
    seeds = "One seed"
    if n_seeds > 1:
        seeds = f"Mean ± sample standard deviation over {n_seeds} seeds, each another start and other data"
    return (
        f"{seeds}. All but the last column are of the saved SAE, loaded again; the last is what "
        "SAELens's SyntheticSAERunner reports. Read F1 beside MCC and uniqueness: latents that copy one "
        "another have a high F1 and a low uniqueness."
    )


_DIFFERENCES_NOTE = "Paired over seeds: both SAEs of a pair saw the same batches. Pooled sd: of the two arms over seeds."


def _measures(runs: Runs) -> str:
    header = ["SAE", *(with_arrow(column.heading, column.better) for column in COLUMNS)]
    rows = [[arm, *(_cell(column, of_arm) for column in COLUMNS)] for arm, of_arm in runs.items()]
    return pipe_table(header, rows, text_columns=1)


def _cell(column: _Column, of_arm: Sequence[Measures]) -> str:
    values = [getattr(measures, column.name) for measures in of_arm]
    if None in values:
        return NOT_AVAILABLE
    scaled = [value * column.scale for value in values]
    return spread(scaled, f".{column.digits}f")


def _differences(runs: Runs, baseline: str, others: Sequence[str]) -> str:
    shown = [column for column in COLUMNS if column.name in PAIRED]
    header = [f"SAE, less {baseline}"]
    for column in shown:
        header += [f"Δ {column.heading}", "Δ / pooled sd"]
    rows: list[list[str]] = []
    for arm in others:
        row = [arm]
        for column in shown:
            ours, theirs = ([getattr(m, column.name) for m in runs[a]] for a in (arm, baseline))
            paired = [a - b for a, b in zip(ours, theirs, strict=True)]
            row += [spread(paired, f"+.{column.digits}f"), _over_pooled_sd(ours, theirs)]
        rows.append(row)
    return pipe_table(header, rows, text_columns=1)


def _over_pooled_sd(ours: Sequence[float], theirs: Sequence[float]) -> str:
    if len(ours) == 1:
        return NOT_AVAILABLE
    pooled = ((stdev(ours) ** 2 + stdev(theirs) ** 2) / 2) ** 0.5
    return f"{(mean(ours) - mean(theirs)) / pooled:+.1f}" if pooled > 0 else NOT_AVAILABLE
