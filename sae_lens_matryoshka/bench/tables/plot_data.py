"""What the plots show, free of any plotting library: charts of panels of series."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_matryoshka.bench.outcome import Metric
from sae_lens_matryoshka.bench.tables.rows import Row
from sae_lens_matryoshka.bench.tables.statistics import summarize
from sae_lens_matryoshka.markdown_table import ARROWS

SHIFT = 1.1
WIDEST_SHIFT = 1.3
"""Factor between the drawn widths of neighbouring SAEs, and of the outermost ones at most."""


@dataclass(frozen=True)
class Style:
    """
    How an SAE looks in every chart.

    Args:
        color: As #RRGGBB.
        marker: Number of its marker's shape, below MARKERS.
        hatch: Number of its bars' pattern: SAEs of one color differ in it.
        is_dashed: Whether its line is dashed, as for published results.
    """

    color: str
    marker: int
    hatch: int
    is_dashed: bool


@dataclass(frozen=True)
class Point:
    """
    A value with its place.

    Args:
        x: L0, width or letter.
        y: Mean over seeds; finite.
        sd: Standard deviation over seeds; None with one seed.
        n: Number of seeds.
        is_outermost: Whether it is of the whole SAE.
        about: The SAE level in words.
    """

    x: float | str
    y: float
    sd: float | None
    n: int
    is_outermost: bool
    about: str


@dataclass(frozen=True)
class Series:
    """The points of one SAE, inner levels first."""

    name: str
    style: Style
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One metric's axes."""

    metric: Metric
    series: tuple[Series, ...]

    @property
    def title(self) -> str:
        """The metric, and which of its values are better."""
        name, better = self.metric.short or self.metric.label, self.metric.better
        return f"{name}, {ARROWS[better]} {better} is better" if better else name

    @property
    def y_label(self) -> str:
        """The metric in words, with its unit."""
        return self.metric.axis or self.metric.label


@dataclass(frozen=True)
class Chart:
    """
    A figure: the metrics of one eval over one x axis.

    Args:
        eval: The eval.
        name: File stem.
        title: Heading.
        x_label: Label of the x axis with its unit.
        note: How to read it.
        panels: One per metric.
        x_ticks: Ticks of a log2 axis; None for a linear one and for letters.
        positives: First letter to the number of words behind its bars; None for no bars over letters.
    """

    eval: str
    name: str
    title: str
    x_label: str
    note: str
    panels: tuple[Panel, ...]
    x_ticks: tuple[int, ...] | None = None
    positives: dict[str, str] | None = None

    @property
    def is_bars(self) -> bool:
        """Whether the points are grouped bars over letters."""
        return self.positives is not None

    @property
    def series(self) -> list[Series]:
        """One series of each SAE in the chart, for the legend."""
        found = {series.name: series for panel in self.panels for series in panel.series}
        return list(found.values())

    def place(self, series: Series, point: Point) -> float | str:
        """Where a point is drawn: on a log2 axis each SAE is shifted, so that none hides another."""
        if self.x_ticks is None:
            return point.x
        names = [one.name for one in self.series]
        shift = names.index(series.name) - (len(names) - 1) / 2
        step = min(SHIFT, WIDEST_SHIFT ** (1 / len(names)))
        return float(point.x) * step**shift

    @property
    def letters(self) -> list[str]:
        """The letters of a bar chart, sorted."""
        return sorted(self.positives or {})


def point_of(row: Row, x: float | str, values: Sequence[float]) -> Point:
    """A point from its values over seeds."""
    summary = summarize(values)
    level = "" if row.levels == 1 else f"level {row.level_name}, "
    about = f"{row.name}, {level}{row.width} latents"
    return Point(x, summary.mean, summary.sd, summary.n, row.is_outermost, about)


def series_of(points: dict[str, list[Point]], styles: dict[str, Style]) -> tuple[Series, ...]:
    return tuple(Series(name, styles[name], tuple(of)) for name, of in points.items() if of)


def spread_note(panels: Sequence[Panel]) -> str:
    """What the error bars are, where there are any."""
    seeds = {
        p.n for panel in panels for one in panel.series for p in one.points if p.sd is not None
    }
    if not seeds:
        return ""
    n = "-".join(map(str, sorted({min(seeds), max(seeds)})))
    return f"Error bars: ± standard deviation over {n} seeds of the eval."
