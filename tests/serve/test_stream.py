"""Replies on the wire: signs of life, readers who leave, time limits, and failures half-way."""

import asyncio
import json
import time

import pytest

from abyssal.engine.llm import LLM
from abyssal.engine.request import Delta
from tests.serve.client import ENDLESS, Visit, events, serving

pytestmark = pytest.mark.anyio

OPENAI, DEEPSEEK, TEXTS = "/v1/chat/completions", "/chat/completions", "/v1/completions"
ASK = [{"role": "user", "content": "the deep sea"}]
LONG = {"messages": ASK, "max_tokens": 1900, **ENDLESS}
SHORT = {"messages": ASK, "max_tokens": 5, "temperature": 0}


async def begun(app, path: str = OPENAI) -> Visit:
    """A visit whose long answer is being written."""
    visit = Visit(app, path, {**LONG, "stream": True})
    assert b'"role"' in await visit.read()
    return visit


async def rest_of(visit: Visit) -> bytes:
    data = b""
    while not visit.task.done() or not visit._sent.empty():
        data += await visit.read()
    return data


async def test_a_stream_that_waits_shows_life_in_comments_and_then_is_served(narrow: LLM):
    async with serving(narrow, keep_alive_s=0.03) as client:
        first = await begun(client.app)
        second = Visit(client.app, OPENAI, {**SHORT, "stream": True})
        assert await second.read() == b": keep-alive\n\n"
        assert second.status == 200
        assert second.headers["content-type"].startswith("text/event-stream")
        assert await second.read() == b": keep-alive\n\n"
        first.leave()
        data = await rest_of(second)
    found = data.replace(b": keep-alive\n\n", b"").decode()
    assert events(found)[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events(found)[-1]["choices"][0]["finish_reason"] == "length"


async def test_a_body_that_waits_shows_life_in_blank_lines_only_at_deepseek(narrow: LLM):
    async with serving(narrow, keep_alive_s=0.03) as client:
        first = await begun(client.app)
        deepseek, openai = (Visit(client.app, path, SHORT) for path in (DEEPSEEK, OPENAI))
        assert await deepseek.read() == b"\n"
        assert await deepseek.read() == b"\n"
        assert openai._sent.empty()
        first.leave()
        bodies = [await rest_of(visit) for visit in (deepseek, openai)]
    deepseek_text, openai_text = (
        json.loads(body)["choices"][0]["message"]["content"] for body in bodies
    )
    assert deepseek_text == openai_text
    assert bodies[1].startswith(b"{")
    assert openai.headers["content-length"] == str(len(bodies[1]))


async def test_deepseeks_reader_sees_life_while_a_body_is_being_written(narrow: LLM):
    async with serving(narrow, keep_alive_s=0.03) as client:
        visit = Visit(client.app, DEEPSEEK, {**LONG, "max_tokens": 300})
        body = await rest_of(visit)
    assert body.startswith(b"\n")
    assert json.loads(body)["usage"]["completion_tokens"] == 300


@pytest.mark.parametrize("streamed", [True, False])
async def test_whoever_leaves_takes_the_request_along_and_nobody_elses(
    llm: LLM, streamed, monkeypatch
):
    pause_s, step = 0.0, llm.engine.step

    def slowly() -> list[Delta]:  # so that steps measure what the service does, not how fast it is
        time.sleep(pause_s)
        return step()

    monkeypatch.setattr(llm.engine, "step", slowly)
    async with serving(llm) as client:
        expected = await client.whole(TEXTS, prompt="the", max_tokens=150, temperature=0)
        stays = asyncio.create_task(
            client.whole(TEXTS, prompt="the", max_tokens=150, temperature=0)
        )
        leaving = [Visit(client.app, OPENAI, {**LONG, "stream": streamed}) for _ in range(5)]
        while (await client.service.bridge.stats()).requests_running < 6:
            await asyncio.sleep(0.005)
        pause_s = 0.05
        steps = (await client.service.bridge.stats()).steps
        for visit in leaving:
            visit.leave()
        await asyncio.gather(*(visit.task for visit in leaving))
        stats = await client.service.bridge.stats()
        pause_s = 0.0
        assert stats.requests_running <= 1
        assert stats.steps <= steps + 5, "they are gone within a step or so, not at their ends"
        assert (await stays)["choices"] == expected["choices"]
        assert await client.settled()


async def test_a_reader_who_leaves_while_the_prompt_is_read_leaves_nothing_behind(narrow: LLM):
    prompt = [0, *[9] * 1900]
    async with serving(narrow) as client:
        visit = Visit(client.app, TEXTS, {"prompt": prompt, "max_tokens": 9, "stream": True})
        while not (await client.service.bridge.stats()).requests_running:
            await asyncio.sleep(0.001)
        visit.leave()
        await visit.task
        assert await client.settled()
        assert (await client.service.bridge.stats()).generation_tokens < 9
        assert visit._sent.empty() or visit.status == 0


async def test_a_full_house_says_429_at_once_and_before_the_body_is_there(narrow: LLM):
    async with serving(narrow, max_waiting=0) as client:
        first = await begun(client.app)
        for path in (OPENAI, DEEPSEEK, TEXTS):
            begin = time.monotonic()
            visit = Visit(client.app, path, None)  # sends headers, and no body yet
            error = json.loads(await visit.read())["error"]
            assert time.monotonic() - begin < 0.5
            assert visit.status == 429
            assert int(visit.headers["retry-after"]) >= 1
            assert error["code"] == "rate_limit_exceeded"
        first.leave()
        await first.task
        assert await client.settled()
        await client.whole(OPENAI, **SHORT)


@pytest.mark.parametrize(
    ("path", "reason"), [(OPENAI, "length"), (DEEPSEEK, "insufficient_system_resource")]
)
async def test_at_the_time_limit_an_answer_ends_with_what_it_has(llm: LLM, path, reason):
    async with serving(llm, request_timeout_s=0.15) as client:
        whole = await client.whole(path, **LONG)
        chunks = await client.chunks(path, **LONG)
        assert await client.settled()
    assert whole["choices"][0]["finish_reason"] == reason
    assert 0 < whole["usage"]["completion_tokens"] < 1900
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons[-1] == reason


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_time_limit_before_the_first_token_is_a_503(llm: LLM, monkeypatch, streamed):
    step = llm.engine.step

    def late_step() -> list[Delta]:
        time.sleep(0.1)
        return step()

    monkeypatch.setattr(llm.engine, "step", late_step)
    async with serving(llm, request_timeout_s=0.05) as client:
        late = await client.post(DEEPSEEK, **SHORT, stream=streamed)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "timeout"
        assert await client.settled()


@pytest.mark.parametrize(
    ("is_bug", "kind"), [(False, "invalid_request_error"), (True, "server_error")]
)
async def test_a_failure_half_way_is_told_in_the_stream_and_before_it_by_a_status(
    llm: LLM, monkeypatch, is_bug, kind
):
    whole_step = llm.engine.step

    def failing(after: int):
        def step() -> list[Delta]:
            deltas = whole_step()
            if not llm.engine.is_idle and llm.engine.stats().generation_tokens > after:
                time.sleep(0.2)  # what came before is on its way to the reader by now
                for delta in deltas:
                    llm.engine.abort(delta.request_id)
                    end = {"finish_reason": "error", "error": "no token", "is_bug": is_bug}
                    return [Delta(delta.request_id, None, **end)]
            return deltas

        return step

    async with serving(llm) as client:
        monkeypatch.setattr(llm.engine, "step", failing(3))
        reply = await client.post(OPENAI, **LONG, stream=True)
        assert reply.status_code == 200
        assert events(reply.text)[-1]["error"]["type"] == kind
        assert events(reply.text)[0]["choices"][0]["delta"]["role"] == "assistant"
        monkeypatch.setattr(llm.engine, "step", failing(0))
        for streamed in (True, False):
            reply = await client.post(OPENAI, **LONG, stream=streamed)
            assert reply.status_code == (500 if kind == "server_error" else 400)
            assert reply.json()["error"]["type"] == kind
        monkeypatch.undo()
        await client.whole(OPENAI, **SHORT)
        assert await client.settled()


async def test_many_readers_come_and_go_and_nothing_is_left(llm: LLM):
    async with serving(llm) as client:
        expected = await client.whole(OPENAI, **SHORT, seed=1)
        visits = []
        for i in range(40):
            visit = Visit(client.app, OPENAI, {**LONG, "max_tokens": 60, "stream": i % 2 == 0})
            visits.append(visit)
            if i % 3 == 0:
                asyncio.get_running_loop().call_later(0.002 * i, visit.leave)
        await asyncio.gather(*(visit.task for visit in visits))
        assert await client.settled()
        again = await client.whole(OPENAI, **SHORT, seed=1)
    assert again["choices"] == expected["choices"]
