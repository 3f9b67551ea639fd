"""Intervals against values computed by hand, and against how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.evals.intervals import bootstrap, interval, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # (k + z^2/2 -+ z sqrt(k (n - k) / n + z^2/4)) / (n + z^2), z = 1.959964
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (1, 29, 0.0061, 0.1718),  # the same
    ],
)
def test_wilson_s_interval_by_hand(right, count, low, high):
    found = wilson(right, count)
    assert found.value == right / count
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_it_holds_the_share_and_mirrors(pair):
    right, count = pair
    found, mirrored = wilson(right, count), wilson(count - right, count)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-12)


def test_the_bootstrap_of_a_mean_is_near_the_normal_one():
    draw = np.random.default_rng(1)
    sample = draw.normal(3.0, 2.0, size=400).tolist()
    found = bootstrap(sample)
    spread = 1.96 * float(np.std(sample)) / math.sqrt(400)
    assert found.value == pytest.approx(float(np.mean(sample)))
    assert found.high - found.value == pytest.approx(spread, rel=0.15)
    assert found.value - found.low == pytest.approx(spread, rel=0.15)
    assert bootstrap(sample) == found


def test_the_bootstrap_of_a_ratio_keeps_pairs_together():
    bytes_ = [10.0, 1000.0, 20.0, 500.0]
    found = bootstrap([2 * size for size in bytes_], bytes_)
    assert found == pytest.approx((2.0, 2.0, 2.0))


def test_right_and_wrong_are_wilson_s_and_all_else_the_bootstrap_s():
    assert interval([1.0, 0.0, 1.0]) == wilson(2, 3)
    assert interval([0.5, 0.0, 1.0]) == bootstrap([0.5, 0.0, 1.0])


def test_nothing_counted_is_nothing_known():
    assert wilson(0, 0)[1:] == (0.0, 1.0)
    assert bootstrap([])[1:] == (-math.inf, math.inf)
