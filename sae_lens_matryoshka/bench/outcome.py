"""What a benchmark leaves behind: one outcome per SAE level, eval and seed; metrics with a direction."""

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["done", "not applicable", "not measurable", "failed", "missing"]

FIDELITY = "fidelity"
"""The measurement that stands beside every eval: "l0", "fvu" and "decoder_max_cosine" among its metrics."""


@dataclass(frozen=True)
class Metric:
    """
    A number that an eval gives.

    Args:
        eval: The eval's name, e.g. "absorption".
        key: Its name in SAEBench's results, e.g. "mean_absorption_fraction_score".
        label: A short heading for tables and plots.
        better: The direction that is better; None where neither is.
        caveat: What a reader must know before comparing; empty if nothing.
        in_table: Whether the table shows it; the CSV file and the plots show all.
        short: The heading below the eval's title; the label if empty.
        axis: The label of a plot's axis, in words with its unit; the label if empty.
        note: The caveat in one short sentence, for the terminal.
    """

    eval: str
    key: str
    label: str
    better: Literal["higher", "lower"] | None
    caveat: str = ""
    in_table: bool = True
    short: str = ""
    axis: str = ""
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """
    What one eval found of one level of one SAE under one seed.

    Args:
        sae: The SAE's name in the config.
        level: Its nested level, 0 the innermost.
        levels: Number of levels of that SAE; 1 for a flat one.
        width: Latents of the level.
        eval: The eval's name, e.g. "absorption".
        seed: The eval's seed; None for published results and for evals that have no seed.
        status: "done", or why there are no metrics.
        reason: A sentence on the status; empty when done.
        metrics: Key to value; NaN where SAEBench gave NaN.
        details: SAEBench's `eval_result_details`, e.g. one entry per letter.
        seconds: Wall time.
        published: Whether it comes from a published file.
        notes: Metric to what a reader must know of it: why there is no number, or what it leaves out.
    """

    sae: str
    level: int
    levels: int
    width: int
    eval: str
    seed: int | None
    status: Status
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    details: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    published: bool = False
    notes: dict[str, str] = field(default_factory=dict)
