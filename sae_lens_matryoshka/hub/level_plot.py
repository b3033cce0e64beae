"""The picture on a model card: FVU and L0 of every level."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sae_lens_matryoshka.hub.card_entry import CardEntry
from sae_lens_matryoshka.levels.measurements import FVU, L0

PLOT = "levels.svg"
MARK = "sae-lens-matryoshka publish"
"""Stands in every plot: who has written it."""

_PANELS = {FVU: "FVU (lower is better)", L0: "L0: active latents per token"}
_COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#c77b0a", "#4a4e69", "#0f8b8d", "#9a3b3b")
_MOST_NAMED = len(_COLORS)


def plotted(entries: Sequence[CardEntry]) -> list[str]:
    """The labels that are known of at least two levels of an SAE, in the order of the panels."""
    return [label for label in _PANELS if any(len(e.points(label)) > 1 for e in entries)]


def level_plot(entries: Sequence[CardEntry]) -> str | None:
    """
    Draw what was measured of the levels, on white, which is readable beside dark text and light.

    Args:
        entries: The SAEs of the repo. Each with measured levels is a line; flat ones are points.

    Returns:
        The SVG, the same for the same numbers; None if nothing was measured of two levels.
    """
    labels = plotted(entries)
    if not labels:
        return None
    style: dict[Any, Any] = {
        "svg.hashsalt": MARK,  # else every drawing has other ids
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "text.parse_math": False,  # names of SAEs are no formulas
    }
    with rc_context(style):
        figure = Figure(figsize=(4.2 * len(labels), 3.2), layout="constrained", facecolor="white")
        shown = [entry for entry in entries if any(entry.points(label) for label in labels)]
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr]
        axes = figure.subplots(1, len(labels), squeeze=False)[0]
        for axis, label in zip(axes, labels, strict=True):
            _draw(axis, shown, label)
        if 1 < len(shown) <= _MOST_NAMED:
            handles, names = axes[0].get_legend_handles_labels()
            columns = 1 if max(map(len, names)) > 40 else 2
            figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Creator": MARK, "Date": None})
    return file.getvalue()


def _draw(axis: Axes, entries: Sequence[CardEntry], label: str) -> None:
    widths: set[int] = set()
    for number, entry in enumerate(entries):
        points = entry.points(label)
        if points:
            x, y = zip(*points, strict=True)
            widths.update(x)
            axis.plot(
                x,
                y,
                marker="o" if len(x) > 1 else "D",
                markersize=5,
                color=_COLORS[number % len(_COLORS)],
                label=_short(entry.sae_id),
            )
            if len(entries) == 1:
                _name_points(axis, points, label)
    axis.set_title(_PANELS[label], fontsize=11, loc="left")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("latents in the level")
    axis.xaxis.set_major_locator(FixedLocator(_apart(sorted(widths))))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{int(value):,}"))
    axis.margins(x=0.08)
    axis.set_ylim(0, 1.15 * axis.dataLim.y1 or 1)  # room for the numbers
    axis.grid(axis="y", color="#e6e6e6")
    axis.set_axisbelow(True)


def _name_points(axis: Axes, points: Sequence[tuple[int, float]], label: str) -> None:
    for width, value in points:
        axis.annotate(
            f"{value:.3f}" if label == FVU else f"{value:.1f}",
            (width, value),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )


def _apart(widths: Sequence[int]) -> list[int]:
    """The widths whose numbers do not run into each other, the largest ones first."""
    kept: list[int] = []
    smallest_ratio = max(1.5, (widths[-1] / widths[0]) ** (1 / 7))
    for width in reversed(widths):
        if not kept or kept[-1] / width >= smallest_ratio:
            kept.append(width)
    return kept


def _short(sae_id: str) -> str:
    printable = "".join(c for c in sae_id if c.isprintable())
    return printable if len(printable) <= 60 else f"…{printable[-59:]}"
