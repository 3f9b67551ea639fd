"""The sampler draws what its values promise: the right tokens, in the right proportions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.request import SamplingParams
from abyssal.engine.sampler import History, sample

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
NOTHING = History([], [])
DRAWS = 20_000


def drawn(logits: torch.Tensor, params: SamplingParams, history: History = NOTHING) -> torch.Tensor:
    """The share of each token in many draws of one request, one after the other."""
    generator = torch.Generator().manual_seed(5)
    rows = 500  # of the same generator: the rows draw in order
    counts = torch.zeros(len(logits))
    for _ in range(DRAWS // rows):
        many = sample(
            logits.expand(rows, -1), [params] * rows, [generator] * rows, [history] * rows
        )
        counts += torch.tensor(many.tokens).bincount(minlength=len(logits))
    return counts / DRAWS


def one(logits: torch.Tensor, history: History = NOTHING, seed: int = 0, **values) -> int:
    generator = torch.Generator().manual_seed(seed)
    return sample(logits[None], [SamplingParams(**values)], [generator], [history]).tokens[0]


def assert_shares(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Chi-square over the tokens that may be drawn; none of the others was."""
    possible = expected > 0
    assert not found[~possible].any()
    excess = (found - expected)[possible].square() / expected[possible]
    assert excess.sum() * DRAWS < 25  # for up to 5 degrees of freedom, p < 0.0002


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_in_proportion_to_the_tempered_softmax(temperature):
    found = drawn(LOGITS, SamplingParams(temperature=temperature))
    assert_shares(found, (LOGITS / temperature).softmax(-1))


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_k": 99}, 6),
        ({"top_p": 0.01}, 1), ({"top_p": 0.55}, 1), ({"top_p": 0.57}, 2), ({"top_p": 0.999}, 6),
        ({"top_k": 2, "top_p": 0.75}, 2), ({"top_k": 2, "top_p": 0.70}, 1),
        ({"min_p": 0.3}, 2), ({"min_p": 0.1}, 4), ({"min_p": 1.0}, 1),
    ],
)  # fmt: skip
def test_a_cut_keeps_the_most_likely_tokens_in_their_proportions(values, kept):
    # softmax(LOGITS) = 0.561 0.206 0.125 0.076 0.028 0.004; among the best two 0.73 and 0.27
    expected = LOGITS.masked_fill(torch.arange(6) >= kept, -torch.inf).softmax(-1)
    assert_shares(drawn(LOGITS, SamplingParams(**values)), expected)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=9), st.integers(1, 9))
def test_top_k_keeps_exactly_k_of_equals_the_first(values, k):
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
    params, nothing = [SamplingParams(top_k=k)] * 200, [NOTHING] * 200
    many = sample(torch.tensor(values).expand(200, -1), params, generators, nothing)
    assert set(many.tokens) == set(best)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9))
def test_temperature_0_takes_the_first_of_the_best_and_the_smallest_one_nearly_so(values):
    logits = torch.tensor(values)
    assert one(logits, temperature=0) == logits.argmax()
    assert logits[one(logits, temperature=5e-324)] == logits.max()


def test_rows_do_not_see_one_another():
    logits = torch.randn(40, 50) * 2
    choices = [
        {"temperature": 0}, {"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.9},
        {"min_p": 0.2}, {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.7}, {"logit_bias": {3: 4.0}},
    ]  # fmt: skip
    params = [SamplingParams(**choices[i % len(choices)]) for i in range(40)]
    histories = [History([i, 2], [3, 3, i]) for i in range(40)]
    together = sample(
        logits, params, [torch.Generator().manual_seed(i) for i in range(40)], histories
    )
    for i in range(40):
        generator = torch.Generator().manual_seed(i)
        assert sample(logits[i : i + 1], [params[i]], [generator], [histories[i]]).tokens == [
            together.tokens[i]
        ]


def test_penalties_lower_what_was_written_and_repetition_also_what_was_asked():
    history = History(prompt=[5], written=[0, 0, 1])
    expected = {
        "presence_penalty": [1.0, 0.0, 0.5, 0.0, -1.0, -3.0],
        "frequency_penalty": [0.0, 0.0, 0.5, 0.0, -1.0, -3.0],
        "repetition_penalty": [2 / 1.5, 1 / 1.5, 0.5, 0.0, -1.0, -4.5],  # negative: multiplied
    }
    for name, logits in expected.items():
        params = SamplingParams(**{name: 1.5 if name == "repetition_penalty" else 1.0})
        assert_shares(drawn(LOGITS, params, history), torch.tensor(logits).softmax(-1))


def test_a_bias_moves_a_logit_before_anything_else():
    assert one(LOGITS, temperature=0, logit_bias={4: 100.0}) == 4
    biased = LOGITS + torch.tensor([-100.0, 0, 0, 0, 0, 0])
    assert_shares(drawn(LOGITS, SamplingParams(logit_bias={0: -100})), biased.softmax(-1))


def test_ids_beyond_the_vocabulary_are_never_drawn():
    logits = torch.tensor([[0.0, 1.0, 50.0]])
    for temperature in (0, 1.0):
        params = [SamplingParams(temperature=temperature)]
        assert sample(logits, params, [torch.Generator()], [NOTHING], 2).tokens[0] < 2


def test_logprobs_are_those_of_the_model_whatever_the_sampling_values():
    params = [
        SamplingParams(temperature=0.3, top_k=2, logit_bias={1: 9.0}, logprobs=2),
        SamplingParams(logprobs=0),
        SamplingParams(),
    ]
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    found = sample(LOGITS.expand(3, -1), params, generators, [NOTHING] * 3)
    model = LOGITS.log_softmax(-1)
    assert found.logprobs[:2] == [pytest.approx(model[t].item()) for t in found.tokens[:2]]
    assert found.logprobs[2] is None
    assert [t for t, _ in found.top_logprobs[0]] == [0, 1]
    assert [p for _, p in found.top_logprobs[0]] == pytest.approx(model[:2].tolist())
    assert found.top_logprobs[1:] == [(), ()]
