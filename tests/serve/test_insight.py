"""The extension field insight: an entry for each token, streamed or whole, that adds up."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.request import Delta, Insight, Request, SamplingParams
from abyssal.model.transformer import DeepSeekV3
from abyssal.serve import answers
from abyssal.serve.insight import AnswerInsight
from abyssal.serve.metrics import Metrics, Stopwatch
from tests.serve.client import ENDLESS, Client, serving

pytestmark = pytest.mark.anyio

OPENAI, DEEPSEEK = "/v1/chat/completions", "/chat/completions"
ASK = [{"role": "user", "content": "the deep sea"}]
Told = dict[str, Any]


@pytest.fixture(scope="module")
def guessing(model: DeepSeekV3) -> DeepSeekV3:
    """The random model with an MTP module whose guesses are sometimes right."""
    config = replace(model.config, num_nextn_predict_layers=1)
    twin = DeepSeekV3(config).initialize(torch.Generator().manual_seed(4))
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin.eval().requires_grad_(False)


def joined(chunks: list[Told], index: int) -> Told:
    """The insight whose pieces a stream brought."""
    shown = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    pieces = [choice["insight"] for choice in shown if "insight" in choice]
    assert ["summary" in piece for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert shown[-1]["insight"] is pieces[-1]
    assert all(piece["tokens"] for piece in pieces[:-1])
    tokens = [token for piece in pieces for token in piece["tokens"]]
    return {"tokens": tokens, "summary": pieces[-1]["summary"]}


def untimed(insight: Told) -> Told:
    """What does not change from one time to the next: no times, no hits of the prefix cache."""
    changing = ("time_to_first_token_s", "tokens_per_s", "cached_tokens")
    kept = {k: v for k, v in insight["summary"].items() if k not in changing}
    return {**insight, "summary": kept}


async def counted(client: Client) -> dict[str, float]:
    text = (await client.http.get("/metrics")).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {s.name: s.value for s in samples if "spec_decode" in s.name and len(s.labels) == 1}


ASKED = st.fixed_dictionaries(
    {
        "path": st.sampled_from([OPENAI, DEEPSEEK]),
        "seed": st.integers(0, 10),
        "max_tokens": st.integers(1, 12),
        "n": st.integers(1, 3),
    },
    optional={
        "thinking": st.sampled_from([{"type": "enabled"}, {"type": "disabled"}]),
        "stop": st.sampled_from(["e", ["the", "a"]]),
        "response_format": st.just({"type": "json_object"}),
        "temperature": st.sampled_from([0, 2]),
    },
)


@given(body=ASKED)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_each_token_has_its_entry_streamed_and_whole(llm: LLM, body):
    path = body.pop("path")
    body |= {"messages": ASK, "logprobs": True}
    async with serving(llm) as client:
        plain = await client.whole(path, **body)
        whole = await client.whole(path, insight=True, **body)
        chunks = await client.chunks(path, insight=True, **body)
    for choice, before in zip(whole["choices"], plain["choices"], strict=True):
        insight = choice.pop("insight")
        answers.ChatInsight.model_validate(insight, strict=True)
        assert [choice[k] for k in choice if k != "message"] == [
            before[k] for k in before if k != "message"
        ]
        assert choice["message"]["content"] == before["message"]["content"]
        logprobs = choice["logprobs"] or {}
        parts = [logprobs.get(name) or [] for name in ("reasoning_content", "content")]
        assert len(insight["tokens"]) == sum(map(len, parts))
        for token in insight["tokens"]:
            assert [len(layer) for layer in token["experts"]] == [2]
            assert not token["drafted"]
        assert untimed(joined(chunks, choice["index"])) == untimed(insight)


@pytest.mark.parametrize("path", [OPENAI, DEEPSEEK])
async def test_without_it_nothing_changes(llm: LLM, path):
    body = {"messages": ASK, "max_tokens": 6, "temperature": 0, "logprobs": True}
    async with serving(llm) as client:
        for more in ({}, {"insight": False}, {"insight": None}):
            whole = await client.whole(path, **body, **more)
            chunks = await client.chunks(path, **body, **more)
            for choice in whole["choices"]:
                assert list(choice) == ["index", "message", "logprobs", "finish_reason"]
            for chunk in chunks:
                for choice in chunk["choices"]:
                    assert list(choice) == ["index", "delta", "logprobs", "finish_reason"]


@pytest.mark.parametrize("value", [1, "true", {}, []])
async def test_it_is_a_switch(llm: LLM, value):
    async with serving(llm) as client:
        reply = await client.post(OPENAI, messages=ASK, insight=value)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "insight"


async def test_the_sum_tells_what_the_answer_took(llm: LLM):
    config = llm.config
    async with serving(llm) as client:
        body = {"messages": ASK, "max_tokens": 70, "insight": True, **ENDLESS}
        reply = await client.whole(OPENAI, **body)
        again = await client.whole(
            OPENAI, **{**body, "messages": [{**ASK[0], "content": "deep sea " * 40}]}
        )
        repeated = await client.whole(
            OPENAI, **{**body, "messages": [{**ASK[0], "content": "deep sea " * 40}]}
        )
    summary = reply["choices"][0]["insight"]["summary"]
    usage = reply["usage"]
    per_token = 4 * config.num_hidden_layers * (12 + 8)  # float32: C + R in each layer
    assert summary["latent_bytes_per_token"] == per_token
    assert summary["full_attention_bytes_per_token"] == 4 * 2 * 2 * (10 + 8 + 6)  # (N+R) + V
    pages = -(-(usage["prompt_tokens"] + 69) // 64)
    assert summary["cache_bytes"] == pages * 64 * per_token
    assert summary["prompt_tokens"] == usage["prompt_tokens"]
    assert summary["moe_layers"] == [1]
    assert (summary["n_routed_experts"], summary["num_experts_per_tok"]) == (4, 2)
    assert (summary["drafted"], summary["accepted"]) == (0, 0)
    assert summary["time_to_first_token_s"] > 0
    assert summary["tokens_per_s"] > 0
    assert again["choices"][0]["insight"]["summary"]["cached_tokens"] == 0
    cached = repeated["choices"][0]["insight"]["summary"]["cached_tokens"]
    assert cached == repeated["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@pytest.mark.parametrize(
    ("dtype", "latent", "full"),
    [("bfloat16", 2 * 2 * 20, 2 * 2 * 48), ("int8", 2 * (20 + 4 + 1), 2 * 48)],
)
async def test_bytes_are_of_the_cache_that_is_there(model, tokenizer, dtype, latent, full):
    options = EngineOptions(max_running=2, cache_dtype=dtype)
    async with serving(LLM(model, tokenizer, options=options)) as client:
        reply = await client.whole(OPENAI, messages=ASK, max_tokens=2, insight=True)
    summary = reply["choices"][0]["insight"]["summary"]
    pool = client.service.llm.engine.runner.cache.pool
    assert summary["latent_bytes_per_token"] == pool.nbytes / pool.shape[1] / 64
    assert summary["latent_bytes_per_token"] == latent
    assert summary["full_attention_bytes_per_token"] == full


@pytest.mark.parametrize("draft", [1, 2])
async def test_drafts_add_up_with_the_sum_and_with_the_metrics(guessing, tokenizer, draft):
    body = {"messages": ASK, "n": 3, "max_tokens": 40, "temperature": 0.3, "seed": 2}
    asked = {**body, "insight": True, "logprobs": True, **ENDLESS}
    async with serving(LLM(guessing, tokenizer)) as client:
        plain = await client.whole(OPENAI, **asked)
    async with serving(LLM(guessing, tokenizer, options=EngineOptions(draft=draft))) as client:
        before = await counted(client)
        reply = await client.whole(OPENAI, **asked)
        after = await counted(client)
    insights = [choice["insight"] for choice in reply["choices"]]
    for insight, choice in zip(insights, plain["choices"], strict=True):
        assert [t["experts"] for t in insight["tokens"]] == [
            t["experts"] for t in choice["insight"]["tokens"]
        ]
        assert sum(t["drafted"] for t in insight["tokens"]) == insight["summary"]["accepted"]
    for name, key in (("drafted", "draft_tokens"), ("accepted", "accepted_tokens")):
        key = f"vllm:spec_decode_num_{key}_total"
        assert sum(i["summary"][name] for i in insights) == after[key] - before[key] > 0
    config = guessing.config  # the module's layer is one more of the cache
    assert insights[0]["summary"]["latent_bytes_per_token"] == 3 * 4 * config.latent_size


def test_an_answer_cut_off_before_its_first_token_has_a_sum_without_times(llm: LLM):
    request = Request(id=7, tokens=[1, 2, 3], params=SamplingParams(insight=True))
    insight = AnswerInsight(request, llm, Stopwatch(Metrics("tiny")))
    insight.note(Delta(7, None, finish_reason="deadline"), is_shown=False)
    told = answers.ChatInsight.model_validate(insight.last(), strict=True)
    assert told.tokens == []
    assert told.summary.prompt_tokens == 3
    assert told.summary.time_to_first_token_s is told.summary.tokens_per_s is None


def test_the_rate_is_of_the_tokens_after_the_first(llm: LLM, monkeypatch):
    clock = iter([100.0, 100.5, 100.75, 101.0])
    monkeypatch.setattr("abyssal.serve.metrics.time.perf_counter", lambda: next(clock))
    request = Request(id=7, tokens=[1, 2, 3], params=SamplingParams(insight=True))
    stopwatch = Stopwatch(Metrics("tiny"))
    insight = AnswerInsight(request, llm, stopwatch)
    for token in range(3):
        delta = Delta(7, token, insight=Insight(((1, 2),), False, 0, 0))
        stopwatch.note([delta])
        insight.note(delta, is_shown=True)
    summary = insight.last()["summary"]
    assert (summary["time_to_first_token_s"], summary["tokens_per_s"]) == (0.5, 4.0)
