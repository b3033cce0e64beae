"""The charts of a benchmark: every metric against L0 and against width, absorption by letter."""

import math
from collections.abc import Callable, Sequence

from sae_lens_matryoshka.bench.evals.metrics import title_of
from sae_lens_matryoshka.bench.outcome import FIDELITY, Metric, Outcome
from sae_lens_matryoshka.bench.tables.plot_data import (
    Chart,
    Panel,
    Point,
    Style,
    point_of,
    series_of,
    spread_note,
)
from sae_lens_matryoshka.bench.tables.plot_letters import letters_chart
from sae_lens_matryoshka.bench.tables.rows import L0, Row, group
from sae_lens_matryoshka.bench.tables.statistics import summarize

# Okabe and Ito's colours, which colour-blind readers tell apart; without their yellow, too pale here.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

MARKERS = 6
"""Marker shapes: one fewer than the colours, so that their pairs repeat after 42 SAEs only."""

FILLED = "Filled: the whole SAE; hollow: an inner level."
APART = "SAEs are set apart a little, so that none hides another."


def charts(outcomes: Sequence[Outcome], metrics: Sequence[Metric]) -> list[Chart]:
    """
    The charts of all metrics: against L0, against width, and absorption per letter.

    Args:
        outcomes: What the evals found.
        metrics: Metrics to show, whether the table has them or not.

    Returns:
        The charts that have at least one point.
    """
    rows = group(outcomes)
    styles = _styles(rows)
    found: list[Chart] = []
    for name in dict.fromkeys(metric.eval for metric in metrics):
        of_eval = [m for m in metrics if m.eval == name]
        found += [
            _against_l0(name, of_eval, rows, styles),
            _against_width(name, of_eval, rows, styles),
        ]
    found.append(letters_chart(rows, styles))
    return [chart for chart in found if chart.panels]


def _styles(rows: Sequence[Row]) -> dict[str, Style]:
    saes = list(dict.fromkeys(row.sae for row in rows))
    return {
        row.name: Style(
            color=COLORS[saes.index(row.sae) % len(COLORS)],
            marker=saes.index(row.sae) % MARKERS,
            hatch=saes.index(row.sae) // len(COLORS),
            is_dashed=row.published,
        )
        for row in rows
    }


def _against_l0(
    name: str, metrics: Sequence[Metric], rows: Sequence[Row], styles: dict[str, Style]
) -> Chart:
    others = [m for m in metrics if (m.eval, m.key) != (FIDELITY, L0.key)]
    panels = _panels(others, rows, styles, lambda row: _mean(row, L0))
    return Chart(
        eval=name,
        name=f"{name}_by_l0",
        title=f"{title_of(name)} against L0",
        x_label=L0.axis,
        note=f"{FILLED} {spread_note(panels)}".strip(),
        panels=panels,
    )


def _against_width(
    name: str, metrics: Sequence[Metric], rows: Sequence[Row], styles: dict[str, Style]
) -> Chart:
    # a published result may not say its width
    panels = _panels(metrics, rows, styles, lambda row: float(row.width) or math.nan)
    points = [point for panel in panels for one in panel.series for point in one.points]
    return Chart(
        eval=name,
        name=f"{name}_by_width",
        title=f"{title_of(name)} against width",
        x_label="width (latents of the level)",
        note=f"{FILLED} {APART} {spread_note(panels)}".strip(),
        panels=panels,
        x_ticks=_powers_of_two([float(point.x) for point in points]),
    )


def _panels(
    metrics: Sequence[Metric],
    rows: Sequence[Row],
    styles: dict[str, Style],
    x_of: Callable[[Row], float],
) -> tuple[Panel, ...]:
    panels: list[Panel] = []
    for metric in metrics:
        points: dict[str, list[Point]] = {}
        for row in rows:
            sample = row.sample(metric)
            if not sample or not math.isfinite(x_of(row)):
                continue
            point = point_of(row, x_of(row), list(sample.values()))
            if math.isfinite(point.y):
                points.setdefault(row.name, []).append(point)
        if points:
            panels.append(Panel(metric, series_of(points, styles)))
    return tuple(panels)


def _mean(row: Row, metric: Metric) -> float:
    sample = row.sample(metric)
    return summarize(sample.values()).mean if sample else math.nan


def _powers_of_two(widths: Sequence[float]) -> tuple[int, ...]:
    """At most eight powers of two that enclose the widths."""
    low = math.floor(math.log2(min(widths, default=1)))
    high = math.ceil(math.log2(max(widths, default=1)))
    step = 1 + (high - low) // 8
    return tuple(2**power for power in range(low, high + step, step))
