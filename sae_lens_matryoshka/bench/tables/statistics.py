"""Means over seeds, and differences to a baseline with their confidence intervals."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

Sample = Mapping[int | None, float]
"""One number per seed; a number without a seed has the key None."""


@dataclass(frozen=True)
class Summary:
    """
    A number over seeds.

    Args:
        mean: Mean over the seeds; NaN when one value is NaN.
        sd: Sample standard deviation (ddof 1); None with one value.
        n: Number of values.
    """

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """
    A number less the baseline's.

    Args:
        value: The mean difference; NaN when one of the values that enter is NaN.
        interval: Its 95 % confidence interval; None where fewer than two differences are known.
        n: Number of differences.
    """

    value: float
    interval: tuple[float, float] | None
    n: int


def summarize(values: Collection[float]) -> Summary:
    """
    Mean and spread over seeds.

    Args:
        values: One number per seed, at least one.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("A summary needs at least one value, got none.")
    array = np.array(list(values), dtype=np.float64)  # [n]
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(float(array.mean()), sd, len(array))


def difference(sample: Sample, baseline: Sample) -> Difference:
    """
    Mean difference to a baseline, with Student's t interval.

    Paired over the seeds that both have. A side that is one number without a seed (a published
    result) is held fixed and the other side's seeds give the interval. Sides that share nothing
    give the difference of their means, without an interval.

    Args:
        sample: Number per seed, at least one.
        baseline: Number per seed of the baseline, at least one.

    Raises:
        ValueError: One of the two is empty.
    """
    if not sample or not baseline:
        raise ValueError(
            f"A difference needs values on both sides, got {len(sample)} and {len(baseline)}."
        )
    shared = [seed for seed in sample if seed in baseline]
    if shared:
        return _with_interval([sample[seed] - baseline[seed] for seed in shared])
    if set(baseline) == {None}:
        return _with_interval([value - baseline[None] for value in sample.values()])
    if set(sample) == {None}:
        return _with_interval([sample[None] - value for value in baseline.values()])
    means = [summarize(side.values()).mean for side in (sample, baseline)]
    return Difference(means[0] - means[1], None, 0)


def _with_interval(differences: list[float]) -> Difference:
    summary = summarize(differences)
    if summary.sd is None:
        return Difference(summary.mean, None, 1)
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=summary.n - 1))
    half = t * summary.sd / math.sqrt(summary.n)
    return Difference(summary.mean, (summary.mean - half, summary.mean + half), summary.n)
