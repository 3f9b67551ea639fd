"""The sampler draws what its values promise: the right tokens, in the right proportions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.request import SamplingParams
from abyssal.engine.sampler import NothingToDraw, Row, sample

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
DRAWS = 5_000


def row(
    position: int = 0, *, seed: int = 5, prompt=(), written=(), allowed=None, banned=(), **values
):
    params = SamplingParams(**values)
    return Row(params, seed, 0, position, prompt, written, allowed, banned)


def bits(tokens: list[int], width: int) -> np.ndarray:
    """The mask that allows these tokens of width, as grammars give it."""
    chosen = np.zeros(-(-width // 32) * 32, dtype=np.uint8)
    chosen[tokens] = 1
    return np.packbits(chosen, bitorder="little").view(np.int32)


def drawn(rows: list[Row], logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """The share of each token in one draw of each row."""
    tokens = sample(logits.expand(len(rows), -1), rows).tokens
    return torch.tensor(tokens).bincount(minlength=len(logits)) / len(rows)


def over_positions(logits: torch.Tensor = LOGITS, **values) -> torch.Tensor:
    """The share of each token in many draws of one request, place after place."""
    template = row(**values)
    return drawn([template._replace(position=i) for i in range(DRAWS)], logits)


def one(logits: torch.Tensor, **values) -> int:
    return sample(logits[None], [row(**values)]).tokens[0]


def assert_shares(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Chi-square over the tokens that may be drawn; none of the others was."""
    possible = expected > 0
    assert not found[~possible].any()
    excess = (found - expected)[possible].square() / expected[possible]
    assert excess.sum() * DRAWS < 25  # for up to 5 degrees of freedom, p < 0.0002


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_in_proportion_to_the_tempered_softmax(temperature):
    found = over_positions(temperature=temperature)
    assert_shares(found, (LOGITS / temperature).softmax(-1))


@pytest.mark.parametrize("varied", ["seed", "sample", "position"])
def test_seeds_answers_and_places_each_bring_noise_of_their_own(varied):
    rows = [row(seed=1)._replace(**{varied: i}) for i in range(DRAWS)]
    assert_shares(drawn(rows), LOGITS.softmax(-1))


def test_places_one_after_the_other_are_independent():
    first = sample(LOGITS.expand(DRAWS, -1), [row(i) for i in range(DRAWS)]).tokens
    pairs = torch.tensor(first[0::2]) * 6 + torch.tensor(first[1::2])
    p = LOGITS.softmax(-1)
    expected = (p[:, None] * p).flatten() * DRAWS / 2
    found = pairs.bincount(minlength=36)
    assert ((found - expected).square() / expected).sum() < 80  # 35 degrees: p < 0.0001


def test_tokens_a_million_times_rarer_are_drawn_as_often_as_they_should():
    # Each is 2^-20 times as likely as the first token, and there are 2^16 of them.
    logits = torch.full((65_537,), -20 * np.log(2.0))
    logits[0] = 0.0
    share = 65_536 / (65_536 + 2**20)
    tokens = sample(logits.expand(1000, -1), [row(i) for i in range(1000)]).tokens
    rare = sum(token > 0 for token in tokens)
    assert abs(rare - 1000 * share) < 4 * (1000 * share) ** 0.5


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
    assert_shares(over_positions(**values), expected)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=9), st.integers(1, 9))
def test_top_k_keeps_exactly_k_of_equals_the_first(values, k):
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    rows = [row(i, top_k=k) for i in range(100)]
    assert set(sample(torch.tensor(values).expand(100, -1), rows).tokens) == set(best)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9))
def test_temperature_0_takes_the_first_of_the_best_and_the_smallest_one_nearly_so(values):
    logits = torch.tensor(values)
    assert one(logits, temperature=0) == values.index(max(values))
    assert logits.max() - logits[one(logits, temperature=5e-324)] < 1e-25


CHOICES = [
    {"temperature": 0}, {"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.9},
    {"min_p": 0.2}, {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.7, "logprobs": 20}, {"logit_bias": {3: 4.0}, "logprobs": 3},
    {"banned": [1, 4]}, {"allowed": bits([0, 7, 33, 36], 37)},
]  # fmt: skip


@pytest.mark.parametrize("width", [37, 101, 4097])
def test_no_bit_of_a_row_depends_on_its_company(width):
    logits = torch.randn(40, width) * 2
    rows = [
        row(i, seed=i % 7, prompt=[i % 37, 2], written=[3, 3, i % 37], **CHOICES[i % len(CHOICES)])
        for i in range(40)
    ]
    together = sample(logits, rows)
    order = torch.randperm(40).tolist()
    for company in [[i] for i in range(40)] + [order[:n] for n in (2, 3, 7, 31, 40)]:
        found = sample(logits[company], [rows[i] for i in company])
        for values, all_values in zip(found, together, strict=True):
            assert values == [all_values[i] for i in company]


def test_the_same_place_draws_the_same_whenever_it_is_asked():
    logits = torch.randn(1, 4096)
    for seed in (0, 1, 2**63, 2**64 - 1):
        draws = [sample(logits, [row(i, seed=seed)]).tokens[0] for i in (3, 900, 3)]
        assert draws[0] == draws[2] != draws[1]


def test_penalties_lower_what_was_written_and_repetition_also_what_was_asked():
    expected = {
        "presence_penalty": [1.0, 0.0, 0.5, 0.0, -1.0, -3.0],
        "frequency_penalty": [0.0, 0.0, 0.5, 0.0, -1.0, -3.0],
        "repetition_penalty": [2 / 1.5, 1 / 1.5, 0.5, 0.0, -1.0, -4.5],  # negative: multiplied
    }
    for name, logits in expected.items():
        values = {name: 1.5 if name == "repetition_penalty" else 1.0}
        found = over_positions(prompt=[5], written=[0, 0, 1], **values)
        assert_shares(found, torch.tensor(logits).softmax(-1))


def test_what_is_banned_is_not_drawn_however_likely():
    assert one(LOGITS, temperature=0, banned=[0, 2]) == 1


def test_a_bias_moves_a_logit_before_anything_else():
    assert one(LOGITS, temperature=0, logit_bias={4: 100.0}) == 4
    biased = LOGITS + torch.tensor([-100.0, 0, 0, 0, 0, 0])
    assert_shares(over_positions(logit_bias={0: -100}), biased.softmax(-1))


@given(
    st.sets(st.integers(0, 69), min_size=1),
    st.sets(st.integers(0, 69), max_size=20),
    st.sampled_from([{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}]),
)
def test_only_what_grammar_and_bad_words_leave_is_drawn(allowed, banned, values):
    left = allowed - banned
    logits = torch.randn(1, 70) * 3
    asked = row(
        allowed=bits(sorted(allowed), 70), banned=sorted(banned), logit_bias={0: 100.0, 69: 100.0},
        **values,
    )  # fmt: skip
    if left:
        assert sample(logits, [asked]).tokens[0] in left
    else:
        with pytest.raises(NothingToDraw, match="leave no token to draw"):
            sample(logits, [asked])


def test_masked_tokens_leave_the_others_their_proportions():
    expected = LOGITS.masked_fill(torch.tensor([1, 0, 0, 1, 0, 0]) > 0, -torch.inf).softmax(-1)
    assert_shares(over_positions(allowed=bits([1, 2, 3, 4, 5], 6), banned=[3]), expected)


def test_a_row_without_a_token_is_named_and_the_others_can_go_on():
    logits = LOGITS.repeat(4, 1)
    logits[2, 1] = torch.nan
    rows = [row(), row(allowed=bits([], 6)), row(), row(temperature=0)]
    with pytest.raises(NothingToDraw, match="row 1 of 4, token 0 of its answer: grammar") as caught:
        sample(logits, rows)
    assert caught.value.rows == [1, 2]
    with pytest.raises(NothingToDraw, match="best logit is nan, expected a finite number"):
        sample(logits[2:], rows[2:])
    assert sample(logits[[0, 3]], [rows[0], rows[3]]).tokens == [one(LOGITS), 0]


def test_ids_beyond_the_vocabulary_are_never_drawn_nor_reported():
    logits = torch.tensor([[0.0, 1.0, 50.0]])
    for temperature in (0, 1.0):
        asked = row(prompt=[2], temperature=temperature, logprobs=3, repetition_penalty=2.0)
        found = sample(logits, [asked], 2)
        assert found.tokens[0] < 2
        assert [token for token, _ in found.top_logprobs[0]] == [1, 0]


def test_logprobs_are_those_of_the_model_whatever_the_sampling_values():
    rows = [
        row(seed=1, temperature=0.3, top_k=2, logit_bias={1: 9.0}, logprobs=2),
        row(seed=2, logprobs=0),
        row(seed=3),
    ]
    found = sample(LOGITS.expand(3, -1), rows)
    model = LOGITS.log_softmax(-1)
    assert found.logprobs[:2] == [pytest.approx(model[t].item()) for t in found.tokens[:2]]
    assert found.logprobs[2] is None
    assert [t for t, _ in found.top_logprobs[0]] == [0, 1]
    assert [p for _, p in found.top_logprobs[0]] == pytest.approx(model[:2].tolist())
    assert found.top_logprobs[1:] == [(), ()]


def test_the_given_logits_stay_as_they_were():
    logits = torch.randn(len(CHOICES), 37)
    before = logits.clone()
    sample(logits, [row(i, written=[1], **values) for i, values in enumerate(CHOICES)], 36)
    assert torch.equal(logits, before)
