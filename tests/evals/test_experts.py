"""Loads by domain, by hand: none, all, and in between."""

import math

import pytest
import torch

from abyssal.engine.likelihood import Scorer
from abyssal.evals.experts import TOKENS, by_domain, from_uniform, loads, section, specialization


def test_experts_of_one_domain_each_give_the_domain_away():
    shares = torch.tensor([[[0.5, 0.5, 0.0, 0.0]], [[0.0, 0.0, 0.5, 0.5]]])
    assert specialization(shares).tolist() == pytest.approx([1.0])
    assert from_uniform(shares).tolist() == [[0.5], [0.5]]


def test_experts_that_all_domains_use_alike_say_nothing():
    shares = torch.tensor([[[0.7, 0.1, 0.2]], [[0.7, 0.1, 0.2]], [[0.7, 0.1, 0.2]]])
    assert specialization(shares).tolist() == pytest.approx([0.0], abs=1e-7)
    assert specialization(shares[:1]).tolist() == [0.0]


def test_mutual_information_by_hand():
    # two domains, two experts: p(e|d) = 3/4, 1/4 and 1/4, 3/4; H(E) = ln 2
    shares = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]])
    apart = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert specialization(shares).tolist() == pytest.approx([(apart + math.log(2)) / math.log(2)])


def test_even_loads_are_no_distance_away():
    shares = torch.full((2, 3, 8), 1 / 8)
    assert from_uniform(shares).tolist() == [[0.0] * 3] * 2


def test_domains_are_languages_or_the_whole_task():
    rows = {
        "a": [{"prompt": "x"}, {"prompt": "y"}],
        "b": [{"prompt": "u", "domain": "it"}, {"prompt": "v", "domain": "zh"}],
        "c": [{"prompt": str(i), "domain": str(i)} for i in range(9)],
    }
    assert by_domain(rows) == {
        "a": ["x", "y"], "b/it": ["u"], "b/zh": ["v"], "c": [str(i) for i in range(9)],
    }  # fmt: skip


def test_loads_are_counted_up_to_enough_tokens(evaluated):
    scorer, config = Scorer(evaluated.engine), evaluated.config
    texts = {"few": ["the sea"], "many": ["the deep sea is dark " * 40] * 200}
    found = loads(scorer, evaluated.tokenizer, texts, config.max_position_embeddings)
    few = len(evaluated.tokenizer.encode("the sea", bos=True)) * config.num_experts_per_tok
    assert found["few"].sum(1).tolist() == [few, few]
    assert found["many"].sum(1).tolist() == [TOKENS * config.num_experts_per_tok] * 2
    told = section(found)
    assert set(told["domains"]) == {"few", "many"}
    assert len(told["specialization"]) == 2
