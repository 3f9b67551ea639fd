"""Charts, held to the numbers they draw."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.report.plots import Chart, Line, Scale, smooth

floats = st.floats(1e-6, 1e12)


@given(st.lists(floats, min_size=1), st.booleans(), st.booleans())
def test_a_scale_holds_its_values_and_labels_them(numbers, log, tight):
    scale = Scale.around(numbers, log=log, tight=tight)
    assert all(-1e-6 <= scale.at(value) <= 1 + 1e-6 for value in numbers)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= scale.at(tick) <= 1 + 1e-6 for tick in ticks)
    assert scale.value(scale.at(numbers[0])) == pytest.approx(numbers[0], rel=1e-6, abs=1e-6)


def test_smoothing_leaves_a_constant_alone_and_steps_over_gaps():
    assert smooth([3.0] * 5, 2) == pytest.approx([3.0] * 5)
    assert smooth([1.0, math.nan, 1.0], 4) == pytest.approx([1.0] * 3)
    assert smooth([0.0, 1.0], 1) == pytest.approx([0.0, 2 / 3])


def test_a_long_line_is_thinned_but_keeps_its_spike():
    y = [1.0] * 20_000
    y[777] = 9.0
    drawn = Chart(title="t", unit="u", lines=[Line(name="l", x=range(20_000), y=y)]).html()
    assert len(drawn) < 40_000
    flat = Chart(title="t", unit="u", lines=[Line(name="l", x=range(20_000), y=[1.0, *y[:0:-1]])])
    highest = min(float(v) for v in re.findall(r"L[\d.]+ ([\d.]+)", drawn))
    assert highest == pytest.approx(1000 * (1 - Scale.around(y).at(9.0)), abs=0.1)
    assert flat.html() != drawn


def test_a_chart_without_a_finite_point_is_no_chart():
    assert Chart(title="t", unit="u", lines=[]).html() == ""
    assert Chart(title="t", unit="u", lines=[Line(name="l", x=[1], y=[math.nan])]).html() == ""
