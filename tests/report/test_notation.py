"""Numbers as people read them; text as it was, whatever it holds."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abyssal.report.notation import duration, escape, number, plain
from tests.report.page import Page

HOSTILE = "</p><script>alert('x')</script><img src=x onerror=\"y\">&amp;\x00\ud800\u202e"


@given(st.text(st.characters(codec=None, exclude_categories=())))
@example(HOSTILE)
def test_escaped_text_is_encodable_and_reads_back(text):
    page = Page(f"<p>{escape(text)}</p>")
    assert page.tags == ["p"]
    page.text.encode("utf-8")
    assert len(page.text) == len(text)
    assert all(a == b for a, b in zip(page.text, text, strict=True) if a != "\ufffd")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [(number(0), "0"), (number(950), "950"), (number(16384), "16.4k"), (number(999_999), "1M"),
     (number(14.8e12), "14.8T"), (number(0.5), "0.5"), (plain(2.2e-5), "2.2e-5"),
     (plain(0.0123), "0.0123"), (plain(5e-4), "5e-4"),
     (plain(-3.0), "-3"), (plain(math.nan), "not a number"), (plain(math.inf), "∞"),
     (duration(0), "0 s"), (duration(59.6), "1 min"), (duration(1872), "31 min 12 s"),
     (duration(7500), "2 h 5 min"), (duration(90_000), "1 d 1 h")],
)  # fmt: skip
def test_numbers_are_written_for_people(shown, expected):
    assert shown == expected
