"""Weights moved under an engine: after a refresh it answers as a new one would, to the bit."""

import copy

import pytest
import torch

from abyssal.engine import packed
from abyssal.engine.engine import EngineOptions
from abyssal.engine.llm import LLM
from abyssal.engine.native import NativeRunner
from abyssal.engine.routes import routes
from abyssal.errors import ConfigError, RequestError
from abyssal.kernels import stack

PROMPT = "the deep sea is dark and the fish in the deep sea see the dark " * 3
TEXTS = [PROMPT, PROMPT + "fish", "深海"]


def moved(model):
    """Another model of the same shape."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for gate in other.gates():
            gate.e_score_correction_bias.add_(torch.randn(len(gate.weight), generator=generator))
    return other


def answers(llm):
    found = llm.generate(TEXTS, max_tokens=20, seed=3, logprobs=0)
    return [(one.tokens, one.logprobs) for one in found]


def take_over(model, other):
    """The weights of another model, in the place of this one's."""
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            model.state_dict()[name].copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draft", [0, 1])
def test_answers_after_a_refresh_are_those_of_a_new_engine(taught, tokenizer, dtype, draft):
    live, other = copy.deepcopy(taught).to(dtype), moved(taught).to(dtype)
    options = EngineOptions(draft=draft)
    llm = LLM(live, tokenizer, options=options)
    before = answers(llm)
    take_over(live, other)
    llm.refresh()
    after = answers(llm)
    assert after == answers(LLM(other, tokenizer, options=options))
    assert after != before
    take_over(live, copy.deepcopy(taught).to(dtype))
    llm.refresh()
    assert answers(llm) == before


def test_cached_prefixes_of_old_weights_are_forgotten(taught, tokenizer):
    llm = LLM(copy.deepcopy(taught), tokenizer)
    tokens = [tokenizer.encode(PROMPT * 2, bos=True)]
    assert len(tokens[0]) > 64
    assert llm.generate(tokens, max_tokens=2)[0].cached_tokens == 0
    assert llm.generate(tokens, max_tokens=2)[0].cached_tokens > 0
    llm.refresh()
    assert llm.generate(tokens, max_tokens=2)[0].cached_tokens == 0


@pytest.mark.skipif(not stack.is_available(), reason="no native kernels here")
def test_a_refresh_packs_into_the_arrays_that_are_there(model, tokenizer):
    llm = LLM(copy.deepcopy(model), tokenizer)
    runner = llm.engine.runner
    assert isinstance(runner, NativeRunner)
    held = runner.stack.weights.held
    places = [one.data.ctypes.data for one in held if isinstance(one, packed.Block)]
    llm.refresh()
    assert runner.stack.weights.held is held
    assert places == [one.data.ctypes.data for one in held if isinstance(one, packed.Block)]


def test_a_folder_cannot_be_refreshed(taught, tokenizer, tmp_path):
    taught.save(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(ConfigError, match="make one of a model"):
        LLM(tmp_path).refresh()


def test_nobody_may_be_under_way(model, tokenizer):
    llm = LLM(copy.deepcopy(model), tokenizer)
    going = llm.stream("the", max_tokens=5, ignore_eos=True)
    next(going)
    with pytest.raises(RequestError, match="under way"):
        llm.refresh()
    list(going)
    llm.refresh()


def test_routes_are_those_of_the_model(model, tokenizer):
    llm = LLM(model, tokenizer)
    tokens = tokenizer.encode(PROMPT * 2, bos=True)[:80]
    met = routes(llm.engine.runner, tokens)
    from abyssal.batch import Batch

    expected = model(Batch.from_sequences([tokens])).routings
    for layer, routing in enumerate(expected):
        want = torch.zeros(len(tokens), met.shape[-1], dtype=torch.bool)
        want.scatter_(1, routing.experts, True)
        assert (met[:, layer] == want).all(-1).float().mean() > 0.99
    assert (met.sum(-1) == model.config.num_experts_per_tok).all()
    assert not llm.engine.runner.expert_load.any()


def test_logprobs_can_be_those_of_the_distribution_drawn_from(model, tokenizer):
    llm = LLM(model, tokenizer)
    values = {"max_tokens": 6, "temperature": 0.5, "seed": 1, "logprobs": 0, "ignore_eos": True}
    plain = llm.generate("the", **values)
    scaled = llm.generate("the", scaled_logprobs=True, **values)
    assert plain.tokens == scaled.tokens
    from abyssal.batch import Batch

    prompt = tokenizer.encode("the", bos=True)
    logits = model.logits(Batch.from_sequences([prompt + plain.tokens]))[len(prompt) - 1 : -1]
    picked = torch.tensor(plain.tokens)[:, None]
    for found, temperature in ((plain, 1.0), (scaled, 0.5)):
        expected = (logits / temperature).log_softmax(-1).gather(-1, picked)[:, 0]
        torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=1e-4, rtol=1e-3)
