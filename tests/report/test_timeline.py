"""A timeline is drawn to scale, and of nothing there is nothing."""

import re

from abyssal.report.timeline import Span, timeline


def test_spans_lie_where_they_were():
    page = timeline("Two", "s", [("a", [Span(0, 1, 1), Span(1, 4, 2)]), ("b", [Span(2, 4, 1)])],
                    {"work": 1, "<more>": 2})  # fmt: skip
    paths = re.findall(r'<path class="s(\d)" d="M([\d.]+) ([\d.]+)h([\d.]+)', page)
    assert [(c, float(x), float(w)) for c, x, _, w in paths] == [
        ("1", 0, 250), ("2", 250, 750), ("1", 500, 500),
    ]  # fmt: skip
    assert float(paths[0][2]) < 500 < float(paths[2][2])  # rows in order
    assert "&lt;more&gt;" in page
    assert "<more>" not in page


def test_nothing_is_drawn_of_nothing():
    assert timeline("None", "s", [], {}) == timeline("None", "s", [("a", [])], {}) == ""
