"""Sampling values are checked where they are born, and deltas add up to a completion."""

import math

import pytest

from abyssal.engine.request import Completion, Delta, Request, SamplingParams
from abyssal.errors import RequestError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", True), ("temperature", -0.1),
        ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
        ("top_p", 0), ("top_p", 1.01), ("top_k", -1), ("min_p", 2), ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1), ("repetition_penalty", 0), ("stop", ""), ("stop", ("a", "")),
        ("stop", (3,)), ("stop_token_ids", (-1,)), ("seed", -1), ("logprobs", 21), ("n", 0),
        ("logit_bias", {3: 101}), ("logit_bias", {-3: 1}), ("logit_bias", {3: math.nan}),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_by_name(name, value):
    with pytest.raises(RequestError, match=rf"{name}.*expected"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("stop", ["ab", ["ab"], ("ab",)])
def test_one_stop_text_and_a_list_of_it_are_the_same(stop):
    assert SamplingParams(stop=stop) == SamplingParams(stop=("ab",))


def test_a_completion_is_its_deltas_joined():
    request = Request(id=7, tokens=[0, 4, 5], params=SamplingParams(logprobs=1))
    deltas = [Delta(7, 8, "a", -1.0, None, "", ((9, -0.5),)), Delta(7, 1, "b", -2.0, "stop")]
    done = Completion.from_deltas(request, deltas)
    assert (done.text, done.tokens, done.finish_reason) == ("ab", [8, 1], "stop")
    assert (done.prompt_tokens, done.completion_tokens) == (3, 2)
    assert done.logprobs == [-1.0, -2.0]
    assert done.top_logprobs == [((9, -0.5),), ()]
    assert done.reasoning is None
