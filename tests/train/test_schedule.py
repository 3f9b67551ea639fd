"""Curves over a run, held to the paper's table and to what every curve must be."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.train.optim import Optim
from abyssal.train.run import Balance, Batching, Run
from abyssal.train.schedule import Segment, check_ascending, constant, value_at

V3 = 14.8e12  # tokens of the published run
VALUES = st.floats(-10, 10)
SHAPES = st.sampled_from(["constant", "linear", "cosine"])


@pytest.mark.parametrize(
    ("tokens", "lr"),
    [(0, 2.2e-4), (9.9e12, 2.2e-4), (12.15e12, (2.2e-4 + 2.2e-5) / 2), (14.4e12, 2.2e-5),
     (14.7e12, 7.3e-6), (V3, 7.3e-6)],
)  # fmt: skip
def test_the_default_learning_rate_is_the_papers(tokens, lr):
    optim = Optim()
    assert optim.lr * value_at(optim.schedule, tokens, V3) == pytest.approx(lr)


@pytest.mark.parametrize(
    ("tokens", "gamma", "mtp_lambda", "sequences"),
    [(0, 1e-3, 0.3, 3072), (469e9 / 2, 1e-3, 0.3, 9216), (469e9, 1e-3, 0.3, 15360),
     (11e12, 1e-3, 0.1, 15360), (14.5e12, 0.0, 0.1, 15360)],
)  # fmt: skip
def test_what_else_changes_by_default_changes_where_the_paper_says(
    tokens, gamma, mtp_lambda, sequences
):
    fields = Run.__dataclass_fields__
    assert value_at(Balance().gamma, tokens, V3) == gamma
    assert value_at(fields["mtp_lambda"].default, tokens, V3) == mtp_lambda
    assert value_at(Batching().sequences, tokens, V3) == pytest.approx(sequences)


@given(VALUES, VALUES, SHAPES, st.floats(0, 1))
def test_a_segment_stays_between_its_two_ends_and_reaches_the_last(start, to, shape, share):
    curve = (Segment(until=1000, start=start, to=to, shape=shape),)
    low, high = sorted((start, to))
    assert low - 1e-9 <= value_at(curve, 1000 * share, 1000) <= high + 1e-9
    assert value_at(curve, 1000, 1000) == to
    assert value_at(curve, 5000, 1000) == to


@given(VALUES, VALUES, st.floats(0, 1))
def test_a_cosine_is_symmetric_and_steepest_in_the_middle(start, to, share):
    curve = (Segment(until=1, start=start, to=to, shape="cosine"),)

    def at(x):
        return value_at(curve, x, 1)

    assert at(share) + at(1 - share) == pytest.approx(start + to, abs=1e-9)
    assert abs(at(0.55) - at(0.45)) >= abs(at(0.1) - at(0.0))


@given(st.lists(st.tuples(VALUES, SHAPES), min_size=1, max_size=4), st.floats(0, 1.2))
def test_a_share_of_the_run_means_the_same_as_its_tokens(pieces, share):
    total, size = 1e6, len(pieces)
    shares = tuple(Segment(until=(i + 1) / size, to=v, shape=s) for i, (v, s) in enumerate(pieces))
    tokens = tuple(Segment(until=total * s.until, to=s.to, shape=s.shape) for s in shares)
    assert value_at(shares, share * total, total) == value_at(tokens, share * total, total)


@given(st.lists(VALUES, min_size=2, max_size=5))
def test_a_segment_begins_where_the_last_one_ended(ends):
    curve = tuple(Segment(until=10 * (i + 1), to=to, shape="linear") for i, to in enumerate(ends))
    assert value_at(curve, 0, 100) == ends[0]  # the first has nothing before it
    for i, (before, after) in enumerate(pairwise(ends), 1):
        assert value_at(curve, 10 * i, 100) == before
        assert value_at(curve, 10 * i + 5, 100) == pytest.approx((before + after) / 2, abs=1e-9)


def test_a_segment_with_a_start_begins_there():
    curve = (Segment(until=10, to=1.0), Segment(until=20, start=5.0, to=3.0, shape="linear"))
    assert [value_at(curve, tokens, 20) for tokens in (9, 10, 15)] == [1.0, 5.0, 4.0]


def test_a_constant_never_moves():
    assert {value_at(constant(7.0), tokens, 100) for tokens in (0, 50, 100, 1000)} == {7.0}


@pytest.mark.parametrize(
    ("values", "named"),
    [({"until": 0, "to": 1}, "until=0"), ({"until": -3, "to": 1}, "until=-3"),
     ({"until": 1, "to": math.inf}, "to=inf"), ({"until": 1, "to": math.nan}, "to=nan"),
     ({"until": 1, "to": 0, "start": math.inf}, "start=inf"),
     ({"until": 1, "to": 0, "start": math.nan}, "start=nan")],
)  # fmt: skip
def test_a_segment_without_length_or_value_is_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        Segment(**values)


@pytest.mark.parametrize("ends", [(), (5, 5), (7, 5), (0.5, 40), (60, 0.5)])
def test_a_curve_that_is_empty_or_out_of_order_is_refused_by_name(ends):
    with pytest.raises(ConfigError, match=r"optim\.schedule"):
        check_ascending(tuple(Segment(until=u, to=1) for u in ends), "optim.schedule", 80)


def test_shares_and_tokens_may_be_mixed_in_one_curve():
    curve = (Segment(until=10, to=1.0), Segment(until=0.5, to=2.0), Segment(until=90, to=3.0))
    check_ascending(curve, "curve", 100)
    assert [value_at(curve, tokens, 100) for tokens in (9, 10, 50)] == [1.0, 2.0, 3.0]
