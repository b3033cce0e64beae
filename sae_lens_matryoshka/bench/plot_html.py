"""The charts as one HTML page with plotly.js inside."""

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from sae_lens_matryoshka.bench.plot_series import Chart, Panel, Point, Series

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
COLUMNS = 3
PANEL_PIXELS = 330
LETTERS_PIXELS = 280
EDGE_PIXELS = 170
"""Height for the title above and the axis label and legend below."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Benchmark plots</title>
<script>{script}</script>
</head>
<body style="font-family: sans-serif">
{body}
</body>
</html>
"""


def page(charts: Sequence[Chart]) -> str:
    """
    A page of charts that needs no network.

    Args:
        charts: The charts, in order.

    Returns:
        The HTML.
    """
    body = [
        _figure(chart).to_html(full_html=False, include_plotlyjs=False, div_id=chart.name)
        for chart in charts
    ]
    return PAGE.format(script=get_plotlyjs(), body="\n".join(body) or "<p>No values to plot.</p>")


def _figure(chart: Chart) -> go.Figure:
    columns = 1 if chart.is_bars else min(COLUMNS, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    pixels = LETTERS_PIXELS if chart.is_bars else PANEL_PIXELS
    drawn = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[panel.direction for panel in chart.panels],
        horizontal_spacing=0.09,
        vertical_spacing=0.28 / rows,
    )
    in_legend: set[str] = set()
    for i, panel in enumerate(chart.panels):
        row, col = i // columns + 1, i % columns + 1
        for series in panel.series:
            trace = _bar(series, panel, chart) if chart.is_bars else _line(series, panel, chart)
            trace.update(showlegend=series.name not in in_legend)
            in_legend.add(series.name)
            drawn.add_trace(trace, row=row, col=col)
        drawn.update_xaxes(title_text=chart.x_label, row=row, col=col, **_x_axis(chart))
        drawn.update_yaxes(title_text=panel.metric.label, row=row, col=col)
    drawn.update_layout(
        title_text=f"{chart.title}<br><sup>{chart.note}</sup>",
        template="plotly_white",
        height=rows * pixels + EDGE_PIXELS,
        margin={"t": 110},
        legend={"groupclick": "togglegroup"},
    )
    return drawn


def _line(series: Series, panel: Panel, chart: Chart) -> go.Scatter:
    style, points = series.style, series.points
    return go.Scatter(
        x=[chart.place(series, point) for point in points],
        y=[point.y for point in points],
        error_y={"array": [point.sd or 0.0 for point in points], "thickness": 1.2},
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
    return go.Bar(
        x=[point.x for point in series.points],
        y=[point.y for point in series.points],
        marker={
            "color": series.style.color,
            "pattern": {"shape": "/" if series.style.is_dashed else ""},
        },
        **_naming(series, panel, chart),
    )


def _naming(series: Series, panel: Panel, chart: Chart) -> dict[str, Any]:
    return {
        "name": html.escape(series.name),
        "legendgroup": series.name,
        "hovertext": [_hover(point, panel, chart) for point in series.points],
        "hoverinfo": "text",
    }


def _hover(point: Point, panel: Panel, chart: Chart) -> str:
    x = point.x if isinstance(point.x, str) else f"{point.x:g}"
    spread = "" if point.sd is None else f" ± {point.sd:.3g}"
    value = f"{panel.metric.label}: {point.y:.4g}{spread}"
    return f"{html.escape(point.about)}<br>{value}<br>{chart.x_label}: {x}"


def _x_axis(chart: Chart) -> dict[str, Any]:
    if chart.is_bars:
        return {"categoryorder": "array", "categoryarray": chart.letters, "dtick": 1}
    if chart.x_ticks is None:
        return {}
    ends = (chart.x_ticks[0] / 1.3, chart.x_ticks[-1] * 1.3)
    return {
        "type": "log",
        "tickvals": list(chart.x_ticks),
        "ticktext": [str(tick) for tick in chart.x_ticks],
        "range": [math.log10(end) for end in ends],
    }
