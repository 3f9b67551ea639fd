"""Figures of a load, against times small enough to add up by hand."""

import pytest

from abyssal.engine.latency import Load, Timeline, measured
from abyssal.errors import RequestError


def test_the_figures_are_those_of_the_requests_that_were_served():
    lines = [
        Timeline(0.0, [1.0, 1.5, 2.5], prompt_tokens=10, answer_tokens=3),
        Timeline(1.0, [4.0, 4.25], prompt_tokens=20, answer_tokens=4, num_refused=2),
        Timeline(2.0, [9.0], error="status 500: no"),
    ]
    found = measured(lines, concurrency=2, elapsed_s=5.0)
    assert (found.requests, found.failed, found.refused) == (2, 1, 2)
    assert (found.prompt_tokens, found.answer_tokens) == (30, 7)
    assert (found.tokens_per_s, found.requests_per_s) == (7 / 5, 2 / 5)
    assert found.first_token_median_ms == pytest.approx(2000)  # 1 s and 3 s
    assert found.first_token_p99_ms == pytest.approx(1000 + 0.99 * 2000)
    assert found.between_tokens_median_ms == pytest.approx(500)  # 0.5, 1 and 0.25 s
    assert found.between_tokens_p99_ms == pytest.approx(500 + 0.98 * 500)
    assert found.first_error == "status 500: no"


def test_nothing_served_has_no_times_and_no_division_by_zero():
    found = measured([Timeline(0.0, error="gone")], concurrency=1, elapsed_s=2.0)
    assert (found.tokens_per_s, found.first_token_median_ms) == (0.0, None)
    assert found.between_tokens_p99_ms is None


def test_a_load_has_two_requests_a_reader_unless_it_says():
    assert Load(concurrency=8).requests == 16
    assert Load(concurrency=1).requests == 4
    assert Load(concurrency=8, requests=3).requests == 3


@pytest.mark.parametrize("name", ["concurrency", "prompt_tokens", "answer_tokens", "requests"])
def test_a_load_of_nothing_is_refused(name):
    with pytest.raises(RequestError, match=f"{name}=-1"):
        Load(**{"concurrency": 1, name: -1})
