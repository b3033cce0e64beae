import math

import numpy as np
import pytest
from scipy import stats

from sae_lens_matryoshka.bench.tables.statistics import (
    Difference,
    Sample,
    difference,
    summarize,
)


def test_mean_and_sample_standard_deviation_by_hand():
    summary = summarize([1.0, 2.0, 6.0])
    # deviations -2, -1, 3: squares 14, over n - 1 = 2
    assert (summary.mean, summary.n) == (3.0, 3)
    assert summary.sd == pytest.approx(math.sqrt(7.0), rel=1e-12)


def test_one_value_has_no_spread():
    summary = summarize([0.25])
    assert (summary.mean, summary.sd, summary.n) == (0.25, None, 1)


def test_nan_in_gives_nan_out():
    summary = summarize([0.5, math.nan, 0.7])
    assert math.isnan(summary.mean)
    assert summary.sd is not None and math.isnan(summary.sd)
    found = difference({0: 0.5, 1: math.nan}, {0: 0.1, 1: 0.2})
    assert math.isnan(found.value)
    assert found.interval is not None and all(math.isnan(end) for end in found.interval)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one value"):
        summarize([])
    with pytest.raises(ValueError, match="both sides, got 1 and 0"):
        difference({0: 1.0}, {})


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired_interval_is_scipys(n: int):
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(size=(2, n))
    found = difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.value == pytest.approx((ours - theirs).mean(), rel=1e-12)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.n == n


def test_paired_interval_by_hand():
    found = difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.4, 2: 0.4})
    # differences 0.1, 0.2, 0.3: sd 0.1, t(2) = 4.302653
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-7)


def test_pairs_are_matched_by_seed_and_only_shared_seeds_count():
    found = difference({7: 1.0, 3: 2.0, 5: 9.0}, {3: 1.5, 7: 0.75, 4: -50.0})
    expected = stats.ttest_rel([1.0, 2.0], [0.75, 1.5]).confidence_interval(0.95)
    assert (found.value, found.n) == (pytest.approx(0.375), 2)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_a_published_value_is_held_fixed():
    ours: Sample = {0: 0.31, 1: 0.35, 2: 0.36}
    expected = stats.ttest_1samp(list(ours.values()), 0.3).confidence_interval(0.95)
    found = difference(ours, {None: 0.3})
    assert found.value == pytest.approx(0.04)
    assert found.interval == pytest.approx((expected.low - 0.3, expected.high - 0.3), rel=1e-9)
    turned = difference({None: 0.3}, ours)
    assert turned.value == pytest.approx(-0.04)
    assert turned.interval == pytest.approx((0.3 - expected.high, 0.3 - expected.low), rel=1e-9)


@pytest.mark.parametrize(
    ("sample", "baseline", "n"),
    [
        ({0: 0.5}, {0: 0.25}, 1),
        ({0: 0.5, 1: 0.9}, {0: 0.25, 2: 0.1}, 1),  # one seed in common
        ({0: 0.5}, {None: 0.25}, 1),
        ({None: 0.5}, {None: 0.25}, 1),
        ({0: 0.4, 1: 0.6}, {2: 0.25}, 0),  # no seed in common
    ],
)
def test_no_interval_without_two_differences(sample: Sample, baseline: Sample, n: int):
    assert difference(sample, baseline) == Difference(0.25, None, n)
