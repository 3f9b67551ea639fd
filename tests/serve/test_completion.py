"""Text completions over HTTP: continued, scored, filled in, and many at once."""

import codecs
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abyssal.engine.llm import LLM
from abyssal.serve.completion import prepare
from abyssal.serve.schema import CompletionRequest, parse
from abyssal.tokenizer.bpe import BOS, FIM_BEGIN, FIM_END, FIM_HOLE
from tests.serve.client import serving
from tests.serve.client import settings as service_settings

pytestmark = pytest.mark.anyio

OPENAI, BETA = "/v1/completions", "/beta/completions"
GREEDY = {"temperature": 0, "ignore_eos": True}


def joined(chunks: list[dict[str, Any]], index: int) -> tuple[str, dict[str, list[Any]], str]:
    """The text, logprobs and finish reason whose pieces these are."""
    text, logprobs, reason = "", {}, None
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                text += choice["text"]
                reason = choice["finish_reason"] or reason
                for name, values in (choice["logprobs"] or {}).items():
                    logprobs.setdefault(name, []).extend(values)
    return text, logprobs, reason


async def test_prompts_in_one_request_are_continued_as_the_engine_does_offline(llm: LLM):
    prompts = ["the deep", "深海 🐟", "fish " * 70]
    expected = [one.text for one in llm.generate(prompts, max_tokens=9, **GREEDY)]
    async with serving(llm) as client:
        reply = await client.whole(OPENAI, prompt=prompts, max_tokens=9, **GREEDY)
        streamed = await client.chunks(OPENAI, prompt=prompts, max_tokens=9, **GREEDY)
    assert [choice["text"] for choice in reply["choices"]] == expected
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [joined(streamed, i)[0] for i in range(3)] == expected


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
@pytest.mark.parametrize("top", [1, 5])
async def test_echoed_prompts_are_scored_as_offline(llm: LLM, max_tokens, top):
    prompts = [
        [0, *llm.tokenizer.encode(text)] for text in ("the deep sea is dark", "fish", "🐟🐟")
    ]
    expected = llm.score(prompts)
    body = {"echo": True, "logprobs": top, "max_tokens": max_tokens, **GREEDY}
    async with serving(llm) as client:
        reply = await client.whole(OPENAI, prompt=prompts, **body)
    for prompt, scores, choice in zip(prompts, expected, reply["choices"], strict=True):
        logprobs = choice["logprobs"]
        count = len(prompt) + max_tokens
        assert {len(values) for values in logprobs.values()} == {count}
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        found = logprobs["token_logprobs"][1 : len(prompt)]
        assert found == pytest.approx(scores, abs=1e-4)
        for own, alternatives in zip(
            logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        ):
            assert own in alternatives.values()
            assert top <= len(alternatives) <= top + 1
        for own, alternatives in zip(
            logprobs["token_logprobs"][len(prompt) :],
            logprobs["top_logprobs"][len(prompt) :],
            strict=True,
        ):
            assert own == max(alternatives.values()), "a greedy token is the most likely one"
        assert choice["text"].startswith(llm.tokenizer.decode(prompt))


async def test_a_prompt_of_one_token_has_nothing_to_be_scored(llm: LLM):
    body = {"prompt": [0], "echo": True, "logprobs": 2, "max_tokens": 0}
    async with serving(llm) as client:
        choice = (await client.whole(OPENAI, **body))["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == [None]
    assert choice["text"] == ""


async def test_offsets_point_at_where_each_tokens_text_begins(llm: LLM):
    prompt = llm.tokenizer.encode("the 🐟 sea 深海 {", bos=True)
    body = {"echo": True, "logprobs": 1, "max_tokens": 0}
    async with serving(llm) as client:
        logprobs = (await client.whole(OPENAI, prompt=prompt, **body))["choices"][0]["logprobs"]
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    for token, name, found in zip(prompt, logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert found == offset
        text = decoder.decode(llm.tokenizer.decode_bytes([token]))  # what the token completes
        assert name in (text, BOS) or name.startswith("bytes:")
        offset += len(text)


async def test_echo_without_logprobs_is_the_prompt_and_its_continuation(llm: LLM):
    async with serving(llm) as client:
        none = await client.whole(OPENAI, prompt="the deep", echo=True, max_tokens=0)
        some = await client.whole(OPENAI, prompt="the deep", echo=True, max_tokens=3, **GREEDY)
        bare = await client.whole(OPENAI, prompt="the deep", max_tokens=3, **GREEDY)
    assert none["choices"][0]["text"] == "the deep"
    assert none["choices"][0]["finish_reason"] == "length"
    assert none["usage"]["completion_tokens"] == 0
    assert some["choices"][0]["text"] == "the deep" + bare["choices"][0]["text"]
    assert some["choices"][0]["logprobs"] is None


BODIES = st.fixed_dictionaries(
    {
        "path": st.sampled_from([OPENAI, BETA]),
        "prompt": st.sampled_from(["the deep", ["the", "fish 🐟"], [0, 9, 8], [[0, 9], [0, 8]]]),
        "seed": st.integers(0, 5),
        "max_tokens": st.integers(1, 8),
        "n": st.integers(1, 2),
    },
    optional={
        "echo": st.just(True),
        "logprobs": st.integers(0, 3),
        "stop": st.sampled_from(["e", ["the", "a"]]),
        "stream_options": st.just({"include_usage": True}),
    },
)


@given(body=BODIES)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_stream_joined_is_the_whole_reply(llm: LLM, body):
    path, options = body.pop("path"), body.pop("stream_options", {})
    more = {"stream_options": options} if options else {}
    async with serving(llm) as client:
        whole = await client.whole(path, **body)
        chunks = await client.chunks(path, **body, **more)
    for choice in whole["choices"]:
        text, logprobs, reason = joined(chunks, choice["index"])
        assert text == choice["text"]
        assert logprobs == (choice["logprobs"] or {})
        assert reason == choice["finish_reason"]
    if path == BETA:
        assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    elif options:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    else:
        assert not any("usage" in chunk for chunk in chunks)


async def test_a_middle_is_written_between_its_prefix_and_its_suffix(llm: LLM):
    tokenizer = llm.tokenizer
    frame = [
        *map(tokenizer.control, (BOS, FIM_BEGIN)), *tokenizer.encode("the deep"),
        tokenizer.control(FIM_HOLE), *tokenizer.encode(" is dark"), tokenizer.control(FIM_END),
    ]  # fmt: skip
    expected = llm.generate([frame], temperature=0, max_tokens=6)[0]
    body = {"prompt": "the deep", "suffix": " is dark", "max_tokens": 6, "temperature": 0}
    async with serving(llm) as client:
        for path in (BETA, OPENAI):
            reply = await client.whole(path, **body)
            assert reply["choices"][0]["text"] == expected.text
            assert reply["usage"]["prompt_tokens"] == len(frame)


async def test_choices_go_by_prompt_and_then_by_sample(llm: LLM):
    body = {"max_tokens": 5, "seed": 3, "n": 3}
    async with serving(llm) as client:
        both = await client.whole(OPENAI, prompt=["the deep", "fish"], **body)
        apart = [await client.whole(OPENAI, prompt=one, **body) for one in ("the deep", "fish")]
    texts = [choice["text"] for reply in apart for choice in reply["choices"]]
    assert [choice["text"] for choice in both["choices"]] == texts
    assert len(set(texts)) == 6


async def test_a_thought_is_text_like_any_other_where_no_chat_was_asked_for(llm: LLM):
    think = llm.tokenizer.control("<think>")
    body = {"prompt": [0, think, 9], "max_tokens": 5, "logprobs": 0, **GREEDY}
    async with serving(llm) as client:
        choice = (await client.whole(OPENAI, **body))["choices"][0]
    assert choice["text"]
    assert len(choice["logprobs"]["tokens"]) == 5
    assert all(math.isfinite(logprob) for logprob in choice["logprobs"]["token_logprobs"])


def test_without_a_limit_openai_writes_16_tokens_and_deepseek_4096(llm: LLM):
    house = service_settings()
    request = parse(CompletionRequest, {"model": "tiny", "prompt": "the"}, "openai", house)
    assert prepare(request, llm, house, "openai").params.max_tokens == 16
    assert prepare(request, llm, house, "deepseek").params.max_tokens == 4096


@pytest.mark.parametrize(("path", "status"), [(OPENAI, 400), (BETA, 422)])
@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 0},
        {"max_tokens": 0, "echo": True, "n": 2},
        {"prompt": [0, 99999]},
        {"prompt": []},
        {"prompt": ["the"] * 300},
        {"prompt": "the " * 3000},
        {"suffix": "x", "prompt": [0, 1]},
        {"logprobs": 21},
    ],
)
async def test_what_cannot_be_served_is_refused(llm: LLM, path, status, body):
    async with serving(llm) as client:
        reply = await client.post(path, **{"prompt": "the", "max_tokens": 1, **body})
        assert reply.status_code == status, reply.text
        assert await client.settled()
