"""Bars, held to the shares they stand for."""

import re

from hypothesis import given
from hypothesis import strategies as st

from abyssal.report.bars import Bar, bars
from tests.report.page import Page

shares = st.floats(0, 1)


@given(st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=4), shares)
def test_what_is_drawn_is_what_is_said(values, chance):
    rows = []
    for i, three in enumerate(values):
        low, value, high = sorted(three)
        rows.append(Bar(name=f"<{i}>", value=value, low=low, high=high, chance=chance))
    drawn = bars("title", "unit", rows)
    widths = [float(width) for width in re.findall(r'<i style="width:([\d.]+)%"', drawn)]
    lefts = [float(left) for left in re.findall(r'<s style="left:([\d.]+)%"', drawn)]
    assert len(widths) == len(lefts) == len(rows)
    for bar, width, left in zip(rows, widths, lefts, strict=True):
        assert abs(width - 100 * bar.value) < 0.01
        assert abs(left - 100 * chance) < 0.01
        assert f"{bar.name}" in Page(drawn).text


def test_without_a_chance_there_is_no_line_and_without_bars_no_figure():
    assert "<s " not in bars("t", "u", [Bar(name="n", value=0.5, low=0.4, high=0.6)])
    assert bars("t", "u", []) == ""
