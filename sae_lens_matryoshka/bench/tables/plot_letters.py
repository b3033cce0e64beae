"""The chart of absorption letter by letter."""

import math
from collections.abc import Collection, Sequence

from sae_lens_matryoshka.bench.evals.metrics import title_of
from sae_lens_matryoshka.bench.outcome import Metric
from sae_lens_matryoshka.bench.tables.plot_data import (
    Chart,
    Panel,
    Point,
    Style,
    point_of,
    series_of,
    spread_note,
)
from sae_lens_matryoshka.bench.tables.rows import Row
from sae_lens_matryoshka.bench.tables.statistics import summarize

LETTERS = "Whole SAEs. A letter without a bar is 0."
POSITIVES = "words of the letter that the model's probe recognizes (mean over seeds)"

LETTER_METRICS = (
    Metric(
        "absorption",
        "mean_absorption_fraction",
        "absorption fraction",
        "lower",
        axis="mean fraction over words",
    ),
    Metric(
        "absorption",
        "full_absorption_rate",
        "full absorption",
        "lower",
        axis="fraction of words",
    ),
)
LETTER_COUNT = "num_probe_true_positives"


def letters_chart(rows: Sequence[Row], styles: dict[str, Style]) -> Chart:
    whole = [row for row in rows if row.is_outermost]
    panels: list[Panel] = []
    for metric in LETTER_METRICS:
        points = {row.name: _letter_points(row, metric) for row in whole}
        if any(points.values()):
            panels.append(Panel(metric, series_of(points, styles)))
    positives = _positives(whole)
    notes = (LETTERS, spread_note(panels), _without_value(panels, positives))
    return Chart(
        eval="absorption",
        name="absorption_by_letter",
        title=f"{title_of('absorption')}, letter by letter",
        x_label=f"first letter; below it: {POSITIVES}",
        note=" ".join(filter(None, notes)),
        panels=tuple(panels),
        positives=positives,
    )


def _letter_points(row: Row, metric: Metric) -> list[Point]:
    found = _by_letter(row, metric.key)
    points = [point_of(row, letter, values) for letter, values in sorted(found.items())]
    return [point for point in points if math.isfinite(point.y)]


def _by_letter(row: Row, key: str) -> dict[str, list[float]]:
    """What SAEBench reports of each letter, one value per seed."""
    values: dict[str, list[float]] = {}
    for outcome in row.of("absorption"):
        for entry in outcome.details:
            if key in entry:
                values.setdefault(entry["first_letter"], []).append(float(entry[key]))
    return values


def _positives(rows: Sequence[Row]) -> dict[str, str]:
    """Words behind each letter's bars, mean over seeds; a range where it differs between SAEs."""
    counts: dict[str, set[int]] = {}
    for row in rows:
        of_metrics = [_by_letter(row, metric.key) for metric in LETTER_METRICS]
        counted = _by_letter(row, LETTER_COUNT)
        for letter in {letter for found in (*of_metrics, counted) for letter in found}:
            means = [round(summarize(counted[letter]).mean)] if letter in counted else []
            counts.setdefault(letter, set()).update(means)
    return {
        letter: "-".join(map(str, sorted({min(found), max(found)}))) if found else "?"
        for letter, found in counts.items()
    }


def _without_value(panels: Sequence[Panel], letters: Collection[str]) -> str:
    """The letters of which SAEBench reports no number, which is not 0."""
    lacking: dict[str, set[str]] = {}
    for panel in panels:
        for one in panel.series:
            missing = set(letters) - {str(point.x) for point in one.points}
            lacking.setdefault(one.name, set()).update(missing)
    phrases = [f"{name}: {' '.join(sorted(of))}" for name, of in lacking.items() if of]
    return f"No value: {', '.join(phrases)}." if phrases else ""
