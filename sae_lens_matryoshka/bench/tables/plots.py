"""The benchmark's plots: one PNG file per chart, and one HTML page with the tables and all charts."""

from collections.abc import Sequence
from pathlib import Path

from sae_lens_matryoshka.atomic_files import whole_files
from sae_lens_matryoshka.bench.outcome import Metric, Outcome
from sae_lens_matryoshka.bench.tables.comparison import Comparison
from sae_lens_matryoshka.bench.tables.plot_html import Heading, page
from sae_lens_matryoshka.bench.tables.plot_png import figure
from sae_lens_matryoshka.bench.tables.plot_series import charts

DPI = 150


def write_plots(
    outcomes: Sequence[Outcome],
    metrics: Sequence[Metric],
    folder: Path,
    heading: Heading,
    baseline: str | None = None,
) -> list[Path]:
    """
    Plot every metric against L0 and against width, and absorption per letter.

    Args:
        outcomes: What the evals found; levels without a value are left out of the plots.
        metrics: Metrics to show, whether the table has them or not.
        folder: Where the files go; created when missing.
        heading: What the page is about.
        baseline: SAE whose outermost level the tables' differences are taken to.

    Returns:
        plots.html, which opens without a network, then one PNG file per chart that has a point.
    """
    found = charts(outcomes, metrics)
    comparison = Comparison.of(outcomes, metrics, baseline)
    names = ["plots.html"]
    with whole_files(folder) as staging:
        (staging / names[0]).write_text(page(found, comparison, heading), encoding="utf-8")
        for chart in found:
            names.append(f"{chart.name}.png")
            figure(chart).savefig(staging / names[-1], dpi=DPI)
    return [folder / name for name in names]
