"""Likelihoods are the reference's, whatever is shared, and to the bit whatever else is scored."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.engine import Engine
from abyssal.engine.likelihood import Continuation, Scorer
from abyssal.errors import RequestError


@pytest.fixture(scope="module")
def scorer(llm) -> Scorer:
    return Scorer(llm.engine)


def groups_of(seed: int, count: int, longest: int = 90) -> list[list[Continuation]]:
    """Groups of one to four sequences with a beginning in common, of any length."""
    draw = random.Random(seed)
    groups = []
    for _ in range(count):
        shared = [draw.randrange(300) for _ in range(draw.randint(1, longest))]
        group = []
        for _ in range(draw.randint(1, 4)):
            own = [draw.randrange(300) for _ in range(draw.randint(1, 96 - len(shared)))]
            group.append(Continuation([*shared, *own], draw.randint(1, len(shared))))
        groups.append(group)
    return groups


@given(st.integers(0, 10**6))
def test_it_is_the_sum_of_the_reference_s_log_probabilities(llm, scorer, seed):
    groups = groups_of(seed, 3)
    for group, found in zip(groups, scorer.score(groups), strict=True):
        for one, likelihood, row in zip(
            group, found, llm.score([one.tokens for one in group]), strict=True
        ):
            expected = sum(row[one.first - 1 :])
            assert likelihood.logprob == pytest.approx(expected, abs=1e-3)
            assert likelihood.tokens == len(one.tokens) - one.first


def test_no_bit_depends_on_company_order_or_sharing(scorer):
    groups = groups_of(1, 60)
    together = scorer.score(groups)
    assert scorer.score(groups[::-1]) == together[::-1]
    assert [scorer.score([group])[0] for group in groups] == together
    apart = scorer.score([[one] for group in groups for one in group])
    assert [found for (found,) in apart] == [found for group in together for found in group]


def test_greedy_is_what_the_model_would_have_written(llm, scorer):
    prompt = llm.tokenizer.encode("the deep sea", bos=True)
    written = llm.generate([prompt], max_tokens=5, temperature=0, ignore_eos=True)[0].tokens
    other = [*written[:-1], (written[-1] + 1) % 300]
    group = [Continuation([*prompt, *tokens], len(prompt)) for tokens in (written, other)]
    assert [one.greedy for one in scorer.score([group])[0]] == [True, False]


def test_expert_loads_are_those_of_all_tokens(llm, scorer):
    sequences = [list(range(3, 40)), [5], list(range(20, 116))]
    load = scorer.expert_load(sequences)
    routed = sum(map(len, sequences)) * llm.config.num_experts_per_tok
    assert load.sum(1).tolist() == [routed]
    assert load.equal(sum(scorer.expert_load([sequence]) for sequence in sequences))


def test_a_group_larger_than_the_cache_gets_a_larger_one(llm, monkeypatch):
    monkeypatch.setattr("abyssal.engine.likelihood.BATCH_PAGES", 2)
    groups = groups_of(2, 4)
    assert Scorer(llm.engine).score(groups) == [Scorer(llm.engine).score([g])[0] for g in groups]


@pytest.mark.parametrize("tokens", [[], [0] * 97, [0, 340], [-1, 3]])
def test_what_cannot_be_scored_is_refused(scorer, tokens):
    with pytest.raises(RequestError, match="expected"):
        scorer.score([[Continuation(tokens)]])


def test_torch_s_passes_say_the_same_and_as_surely(model, tokenizer, scorer, monkeypatch):
    monkeypatch.setattr("abyssal.engine.engine.runs_natively", lambda device: False)
    slow = Scorer(Engine(model, tokenizer))
    groups = groups_of(3, 12)
    found, expected = slow.score(groups), scorer.score(groups)
    assert slow.score(groups[::-1]) == found[::-1]
    assert [slow.score([group])[0] for group in groups] == found
    for group, other in zip(found, expected, strict=True):
        assert [one.logprob for one in group] == pytest.approx(
            [one.logprob for one in other], abs=1e-3
        )
