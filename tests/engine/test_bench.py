"""The bench asks for what it says, keeps so many requests under way, and leaves nothing behind."""

from dataclasses import replace

import pytest
import torch

from abyssal.engine.bench import acceptance, measure
from abyssal.engine.latency import Load
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.errors import RequestError
from abyssal.model.transformer import DeepSeekV3


def test_the_figures_are_of_the_load(llm):
    before = llm.engine.stats()
    loads = [Load(concurrency=n, prompt_tokens=20, answer_tokens=9) for n in (1, 6)]
    for load, found in zip(loads, measure(llm, loads), strict=True):
        assert (found.concurrency, found.requests) == (load.concurrency, load.requests)
        assert (found.failed, found.refused) == (0, 0)
        assert found.prompt_tokens == 20 * load.requests
        assert found.answer_tokens == 9 * load.requests
        assert found.tokens_per_s == pytest.approx(found.answer_tokens / found.elapsed_s)
        assert 0 < found.first_token_median_ms <= found.first_token_p99_ms
        assert 0 < found.between_tokens_median_ms <= found.between_tokens_p99_ms
        assert found.draft_acceptance is None
    after = llm.engine.stats()
    assert after.pages_in_use == before.pages_in_use
    assert after.prompt_tokens_cached == before.prompt_tokens_cached  # nothing was shared


def test_so_many_requests_are_under_way_at_once(llm, monkeypatch):
    seen = []
    step = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda: seen.append(running()) or step())

    def running() -> int:
        stats = llm.engine.stats()
        return stats.requests_running + stats.requests_waiting

    list(measure(llm, [Load(concurrency=3, requests=7, prompt_tokens=4, answer_tokens=5)]))
    assert max(seen) == 3
    assert seen.count(3) >= 8  # two rounds of three, each of at least four passes


def test_drafts_are_judged_by_how_many_were_right(model, tokenizer):
    config = replace(model.config, num_nextn_predict_layers=1)
    drafting = DeepSeekV3(config).initialize(torch.Generator().manual_seed(3)).requires_grad_(False)
    llm = LLM(drafting, tokenizer, options=EngineOptions(draft=2, cache_bytes=2**20))
    start = llm.engine.stats()
    load = Load(concurrency=2, prompt_tokens=8, answer_tokens=30, temperature=0)
    (found,) = measure(llm, [load])
    assert len(found.draft_acceptance) == 2
    assert all(0 <= share <= 1 for share in found.draft_acceptance)
    overall = acceptance(start, llm.engine.stats())
    assert overall[0] == pytest.approx(found.draft_acceptance[0], abs=0.2)


def test_a_load_that_does_not_fit_the_context_is_refused_before_anything_runs(llm):
    steps = llm.engine.stats().steps
    good = Load(concurrency=1, prompt_tokens=4, answer_tokens=4)
    with pytest.raises(RequestError, match="context of 96"):
        list(measure(llm, [good, Load(concurrency=1, prompt_tokens=90, answer_tokens=7)]))
    assert llm.engine.stats().steps == steps
