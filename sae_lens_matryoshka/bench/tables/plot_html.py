"""The page of plots: the tables and charts of each eval, with plotly.js inside."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sae_lens_matryoshka.bench.evals.metrics import title_of
from sae_lens_matryoshka.bench.tables.cells import Footnotes
from sae_lens_matryoshka.bench.tables.comparison import Comparison
from sae_lens_matryoshka.bench.tables.grids import EvalTable, eval_tables, notes
from sae_lens_matryoshka.bench.tables.plot_data import Chart, Panel, Point, Series, Style

TEMPLATE = Path(__file__).with_name("plots.html.jinja")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
GLYPHS = "●■▲◆▼✚"
PATTERNS = ("", ".", "x", "+")
PANEL_PIXELS, LETTERS_PIXELS = 300, 320
BAR_PIXELS = 5
"""Width of a bar with which many SAEs can still be told apart."""


@dataclass(frozen=True)
class Heading:
    """
    What the page is about.

    Args:
        model: The language model.
        hook_name: The hook that the SAEs were trained on.
        further: Notes below those of the tables: seeds, versions.
    """

    model: str
    hook_name: str
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Section:
    """An eval's part of the page."""

    name: str
    table: EvalTable
    charts: tuple[dict[str, Any], ...]


def page(charts: Sequence[Chart], comparison: Comparison, heading: Heading) -> str:
    """
    A page that needs no network.

    Args:
        charts: The charts, in order.
        comparison: The tables.
        heading: What it is about.

    Returns:
        The HTML. Names are escaped.
    """
    footnotes = Footnotes()
    tables = eval_tables(comparison, footnotes)
    sections = [
        _Section(
            title_of(table.eval),
            table,
            tuple(_drawn(chart) for chart in charts if chart.eval == table.eval),
        )
        for table in tables
    ]
    styles = {one.name: one.style for chart in charts for one in chart.series}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        heading=heading,
        baseline=comparison.baseline.name if comparison.baseline else None,
        legend=[(name, style.color, _glyph(style)) for name, style in styles.items()],
        sections=sections,
        reasons=[(number, reason) for reason, number in footnotes.numbers.items()],
        notes=[*notes(comparison, tables), *heading.further],
        script=Markup(get_plotlyjs()),
    )


def _glyph(style: Style) -> str:
    return f"{GLYPHS[style.marker]} (dashed)" if style.is_dashed else GLYPHS[style.marker]


def _drawn(chart: Chart) -> dict[str, Any]:
    """What the template shows of a chart; a figure per panel, so that a phone shows one below another."""
    figures = [
        Markup(
            _figure(panel, chart).to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=f"{chart.name}_{i}",
                config={"responsive": True, "displayModeBar": False},
            )
        )
        for i, panel in enumerate(chart.panels)
    ]
    return {
        "name": chart.name,
        "title": chart.title,
        "note": chart.note,
        "figures": figures,
        "is_wide": chart.is_bars,
        "pixels": max(800, len(chart.letters) * len(chart.series) * BAR_PIXELS),
    }


def _figure(panel: Panel, chart: Chart) -> go.Figure:
    traces = [
        _bar(series, panel, chart) if chart.is_bars else _line(series, panel, chart)
        for series in panel.series
    ]
    drawn = go.Figure(traces)
    drawn.update_layout(
        title={"text": panel.title, "font": {"size": 14}, "x": 0.02 if chart.is_bars else 0.5},
        template="plotly_white",
        height=LETTERS_PIXELS if chart.is_bars else PANEL_PIXELS,
        margin={"t": 40, "r": 10, "b": 10, "l": 10},
        showlegend=False,
        xaxis={"title": {"text": chart.x_label, "font": {"size": 12}}, **_x_axis(chart)},
        yaxis={
            "title": {"text": panel.y_label, "font": {"size": 12}},
            "automargin": True,
            **({"rangemode": "nonnegative"} if chart.is_bars else {}),
        },
    )
    return drawn


def _line(series: Series, panel: Panel, chart: Chart) -> go.Scatter:
    style, points = series.style, series.points
    return go.Scatter(
        x=[chart.place(series, point) for point in points],
        y=[point.y for point in points],
        error_y=_error_bars(series),
        mode="lines+markers",
        line={"color": style.color, "dash": "dash" if style.is_dashed else "solid"},
        marker={
            "symbol": [SHAPES[style.marker] for _ in points],
            "size": 9,
            "color": [style.color if point.is_outermost else "white" for point in points],
            "line": {"color": style.color, "width": 2},
        },
        **_naming(series, panel, chart),
    )


def _bar(series: Series, panel: Panel, chart: Chart) -> go.Bar:
    style = series.style
    pattern = "/" if style.is_dashed else PATTERNS[style.hatch % len(PATTERNS)]
    return go.Bar(
        x=[point.x for point in series.points],
        y=[point.y for point in series.points],
        error_y=_error_bars(series),
        marker={"color": style.color, "pattern": {"shape": pattern}},
        **_naming(series, panel, chart),
    )


def _error_bars(series: Series) -> dict[str, Any]:
    deviations = [point.sd for point in series.points]
    shown = any(sd is not None for sd in deviations)
    array = [sd or 0.0 for sd in deviations]
    return {"array": array, "visible": shown, "thickness": 1.2, "width": 3}


def _naming(series: Series, panel: Panel, chart: Chart) -> dict[str, Any]:
    return {
        "name": escape(series.name),
        "meta": series.name,  # by which the page finds it
        "hovertext": [_hover(point, panel, chart) for point in series.points],
        "hoverinfo": "text",
    }


def _hover(point: Point, panel: Panel, chart: Chart) -> str:
    spread = "" if point.sd is None else f" ± {point.sd:.3g} (n={point.n})"
    value = f"{panel.y_label}: {point.y:.4g}{spread}"
    return f"{escape(point.about)}<br>{value}<br>{_hovered_place(point, chart)}"


def _hovered_place(point: Point, chart: Chart) -> str:
    if chart.positives is not None:
        letter = str(point.x)
        return f"letter {letter}, {chart.positives[letter]} words"
    return f"{chart.x_label}: {point.x:g}"


def _x_axis(chart: Chart) -> dict[str, Any]:
    if chart.positives is not None:
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": chart.letters,
            "tickvals": chart.letters,
            "ticktext": [f"{letter}<br>{chart.positives[letter]}" for letter in chart.letters],
            "tickangle": 0,
        }
    if chart.x_ticks is None:
        return {}
    ends = (chart.x_ticks[0] / 1.3, chart.x_ticks[-1] * 1.3)
    return {
        "type": "log",
        "tickvals": list(chart.x_ticks),
        "ticktext": [str(tick) for tick in chart.x_ticks],
        "range": [math.log10(end) for end in ends],
    }
