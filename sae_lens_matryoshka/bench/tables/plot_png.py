"""A chart as a matplotlib figure, drawn without a display and without pyplot's global state."""

import math
import textwrap
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from sae_lens_matryoshka.bench.tables.plot_data import Chart, Panel, Series, Style

SHAPES = ("o", "s", "^", "D", "v", "P")
COLUMNS = 3
PANEL_INCHES = (4.0, 3.0)
LETTERS_INCHES = (11.0, 2.7)
BAR_INCHES = 0.045
"""Width of a bar with which many SAEs can still be told apart."""
SMALLEST_INCHES = 6.5
LINE_INCHES = 0.22
GRID, WHISKER = "#DDDDDD", "#333333"
BARS_OF_SLOT = 0.8
"""What a letter's bars take of its place on the axis."""
HATCHES = (None, "...", "xxx", "ooo")


def figure(chart: Chart) -> Figure:
    """
    Draw a chart.

    Returns:
        The figure, with one legend for all panels.
    """
    columns = 1 if chart.is_bars else min(COLUMNS, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    width, height = LETTERS_INCHES if chart.is_bars else PANEL_INCHES
    bars = len(chart.letters) * len(chart.series)
    inches = max(columns * width, SMALLEST_INCHES, bars * BAR_INCHES / BARS_OF_SLOT)
    in_line = _legend_columns(chart, inches)
    below = 0.9 + LINE_INCHES * (math.ceil(len(chart.series) / in_line) - 1)
    drawn = Figure(figsize=(inches, rows * height + below), layout="constrained")
    FigureCanvasAgg(drawn)
    drawn.suptitle(chart.title, fontsize=13)
    for i, panel in enumerate(chart.panels):
        axes = drawn.add_subplot(rows, columns, i + 1)
        if chart.is_bars:
            _draw_bars(axes, panel, chart)
        else:
            _draw_lines(axes, panel, chart)
        _label(axes, panel, chart)
    _legend(drawn, chart, in_line)
    return drawn


def _draw_lines(axes: Axes, panel: Panel, chart: Chart) -> None:
    for series in panel.series:
        style, points = series.style, series.points
        x = [float(chart.place(series, point)) for point in points]
        y = [point.y for point in points]
        axes.plot(x, y, color=style.color, linestyle=_dash(style), linewidth=1.4)
        for place, point in zip(x, points, strict=True):
            axes.errorbar(
                place,
                point.y,
                yerr=point.sd,
                fmt=SHAPES[style.marker],
                color=style.color,
                markerfacecolor=style.color if point.is_outermost else "white",
                markersize=6,
                capsize=3,
                elinewidth=1.1,
            )


def _draw_bars(axes: Axes, panel: Panel, chart: Chart) -> None:
    width = BARS_OF_SLOT / len(panel.series)
    for i, series in enumerate(panel.series):
        offset = (i - (len(panel.series) - 1) / 2) * width
        x = [chart.letters.index(str(point.x)) + offset for point in series.points]
        axes.bar(
            x,
            [point.y for point in series.points],
            width,
            yerr=[point.sd or 0.0 for point in series.points] if _has_spread(series) else None,
            color=series.style.color,
            edgecolor="white",
            linewidth=0.3,
            hatch=_hatch(series.style),
            error_kw={"elinewidth": 0.9, "capsize": min(2.0, 20 * width), "ecolor": WHISKER},
        )
    positives = chart.positives or {}
    labels = [f"{letter}\n{positives[letter]}" for letter in chart.letters]
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_ylim(bottom=0)


def _has_spread(series: Series) -> bool:
    return any(point.sd is not None for point in series.points)


def _label(axes: Axes, panel: Panel, chart: Chart) -> None:
    axes.set_title(panel.title, fontsize=10)
    if not chart.is_bars or panel is chart.panels[-1]:
        axes.set_xlabel(chart.x_label, fontsize=9)
    axes.set_ylabel(panel.y_label, fontsize=9)
    axes.grid(axis="y" if chart.is_bars else "both", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.x_ticks is not None:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(chart.x_ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.set_xlim(chart.x_ticks[0] / 1.3, chart.x_ticks[-1] * 1.3)


def _legend_columns(chart: Chart, inches: float) -> int:
    longest = max(len(series.name) for series in chart.series)
    fitting = int(inches * 12 / (longest + 8))  # about 12 characters per inch
    return max(1, min(len(chart.series), fitting))


def _legend(drawn: Figure, chart: Chart, columns: int) -> None:
    drawn.legend(
        handles=[_key(series, chart.is_bars) for series in chart.series],
        loc="outside lower center",
        ncols=columns,
        title=textwrap.fill(chart.note, int(drawn.get_figwidth() * 16)),
        title_fontsize=8,
        fontsize=9,
        frameon=False,
    )


def _key(series: Series, is_bar: bool) -> Line2D | Patch:
    style = series.style
    if is_bar:
        return Patch(facecolor=style.color, hatch=_hatch(style), label=series.name)
    return Line2D(
        [],
        [],
        color=style.color,
        marker=SHAPES[style.marker],
        linestyle=_dash(style),
        label=series.name,
    )


def _dash(style: Style) -> Literal["--", "-"]:
    return "--" if style.is_dashed else "-"


def _hatch(style: Style) -> str | None:
    return "///" if style.is_dashed else HATCHES[style.hatch % len(HATCHES)]
