"""What /metrics tells is what happened, under the names that dashboards know."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from abyssal.engine.llm import LLM
from abyssal.engine.options import Stats
from abyssal.serve.metrics import Metrics
from tests.serve.client import ENDLESS, Client, Visit, serving

pytestmark = pytest.mark.anyio

ASK = [{"role": "user", "content": "the deep sea"}]
KNOWN_TO_DASHBOARDS = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:request_success_total",
    "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
}


def values(text: str) -> dict[tuple[str, ...], float]:
    """The value of every sample, by its name and labels other than the model's."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["model_name"] == "tiny"
            rest = [v for k, v in sorted(sample.labels.items()) if k != "model_name"]
            found[sample.name, *rest] = sample.value
    return found


async def measured(client: Client) -> dict[tuple[str, ...], float]:
    reply = await client.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return values(reply.text)


async def test_counts_are_those_of_the_replies(llm: LLM):
    async with serving(llm) as client:
        before = await measured(client)
        replies = await asyncio.gather(
            *(
                client.whole("/v1/chat/completions", messages=ASK, max_tokens=i, n=2, seed=i)
                for i in range(1, 9)
            )
        )
        after = await measured(client)
    usages = [reply["usage"] for reply in replies]
    ended = [choice["finish_reason"] for reply in replies for choice in reply["choices"]]

    def grown(*name: str) -> float:
        return after[name] - before.get(name, 0)

    written = sum(usage["completion_tokens"] for usage in usages)
    assert grown("vllm:generation_tokens_total") == written
    assert grown("vllm:time_to_first_token_seconds_count") == 16
    assert grown("vllm:inter_token_latency_seconds_count") == written - 16
    assert grown("vllm:e2e_request_latency_seconds_count") == 16
    assert grown("vllm:request_success_total", "length") == ended.count("length")
    assert after["vllm:num_requests_running",] == after["vllm:num_requests_waiting",] == 0
    assert after["vllm:kv_cache_usage_perc",] == after["abyssal:pages_in_use",] == 0
    loads = [v for name, v in after.items() if name[0] == "abyssal:expert_load_total"]
    assert len(loads) == 4  # one MoE layer of four experts, each token at two of them
    assert sum(loads) % 2 == 0
    assert sum(loads) >= 2 * written - 2 * 16


async def test_cache_hits_are_counted(llm: LLM):
    prompt = [{"role": "user", "content": "the deep sea is dark " * 40}]
    async with serving(llm) as client:
        for _ in range(2):
            reply = await client.whole("/v1/chat/completions", messages=prompt, max_tokens=1)
        found = await measured(client)
    hits = reply["usage"]["prompt_cache_hit_tokens"]
    assert hits > 0
    assert found["vllm:prefix_cache_hits_total",] == hits
    read = found["vllm:prefix_cache_queries_total",]
    assert read == found["vllm:prompt_tokens_total",] == 2 * reply["usage"]["prompt_tokens"]
    assert found["abyssal:prefix_cache_hit_ratio",] == pytest.approx(hits / read)


async def test_who_leaves_and_who_is_refused_is_counted(narrow: LLM):
    async with serving(narrow, max_waiting=0) as client:
        body = {"messages": ASK, "max_tokens": 1900, "stream": True, **ENDLESS}
        visit = Visit(client.app, "/v1/chat/completions", body)
        await visit.read()
        assert (await measured(client))["vllm:num_requests_running",] == 1
        for _ in range(3):
            reply = await client.post("/v1/chat/completions", messages=ASK)
            assert reply.status_code == 429
        visit.leave()
        await visit.task
        found = await measured(client)
    assert found["abyssal:requests_refused_total",] == 3
    assert found["vllm:request_success_total", "abort"] == 1


def test_speculation_is_told_by_position_under_vllms_names():
    stats = Stats(
        requests_running=3, requests_waiting=2, pages_in_use=10, pages_total=40, preemptions=1,
        prompt_tokens=100, prompt_tokens_cached=25, generation_tokens=50, drafted=[20, 16],
        accepted=[15, 4], steps=60, expert_load=[[1, 3], [2, 2]], step_s=0.01, schedule_s=0.001,
    )  # fmt: skip
    metrics = Metrics("tiny")
    metrics.end("stop")
    found = values(metrics.text(stats).decode())
    assert {name for name, *_ in found} >= KNOWN_TO_DASHBOARDS
    assert found["vllm:spec_decode_num_drafts_total",] == 20
    assert found["vllm:spec_decode_num_draft_tokens_total",] == 36
    assert found["vllm:spec_decode_num_accepted_tokens_total",] == 19
    assert found["vllm:spec_decode_num_accepted_tokens_per_pos_total", "1"] == 4
    assert found["abyssal:mtp_acceptance_ratio", "0"] == 0.75
    assert found["vllm:kv_cache_usage_perc",] == 0.25
    assert found["abyssal:expert_load_total", "1", "0"] == 3
    assert found["abyssal:expert_load_max_over_mean", "0"] == 1.5


def test_two_services_count_apart():
    one, two = Metrics("tiny"), Metrics("tiny")
    one.refuse()
    stats = Stats(
        **dict.fromkeys(Stats.__slots__, 0) | {"drafted": [], "accepted": [], "expert_load": []}
    )
    assert values(one.text(stats).decode())["abyssal:requests_refused_total",] == 1
    assert values(two.text(stats).decode())["abyssal:requests_refused_total",] == 0
