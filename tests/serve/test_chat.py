"""Chats over HTTP: what the engine writes, in both dialects, streamed or not."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abyssal.engine.llm import LLM
from abyssal.errors import DataError
from abyssal.serve.chat import messages_of, prepare
from abyssal.serve.faults import Fault
from abyssal.serve.parts import ChatMessage
from abyssal.serve.schema import ChatRequest, parse
from abyssal.tokenizer.bpe import END_THINK, EOS, TOOL_CALLS_BEGIN, USER
from abyssal.tokenizer.chat import Message, render
from tests.serve.client import serving
from tests.serve.client import settings as service_settings

pytestmark = pytest.mark.anyio

OPENAI, DEEPSEEK = "/v1/chat/completions", "/chat/completions"
DIALECTS = pytest.mark.parametrize("path", [OPENAI, DEEPSEEK, "/beta/chat/completions"])
ASK = [{"role": "user", "content": "the deep sea"}]
SEE = {
    "type": "function",
    "function": {
        "name": "see",
        "parameters": {
            "type": "object",
            "properties": {"dark": {"type": "boolean"}, "fish": {"enum": ["a", "b"]}},
            "required": ["dark", "fish"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = SEE["function"]["parameters"]
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


def joined(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """The message whose fragments these are."""
    message: dict[str, Any] = {"role": None, "content": "", "reasoning_content": "", "calls": {}}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["role"] = delta.get("role", message["role"])
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name) or ""
            for call in delta.get("tool_calls", ()):
                known = message["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                known["name"] += call["function"].get("name", "")
                known["arguments"] += call["function"].get("arguments", "")
            message["finish_reason"] = choice["finish_reason"]
    return message


async def test_an_answer_is_what_the_engine_writes_offline(llm: LLM):
    expected = llm.chat(
        "the deep sea", layout="v3.1", temperature=0, max_tokens=24, ignore_eos=True
    )
    async with serving(llm) as client:
        body = {"messages": ASK, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
        reply = await client.whole(OPENAI, **body)
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert reply["usage"]["completion_tokens"] == expected.completion_tokens == 24


REQUESTS = st.fixed_dictionaries(
    {
        "path": st.sampled_from([OPENAI, DEEPSEEK]),
        "seed": st.integers(0, 10),
        "max_tokens": st.integers(1, 12),
        "n": st.integers(1, 3),
    },
    optional={
        "thinking": st.sampled_from([{"type": "enabled"}, {"type": "disabled"}]),
        "temperature": st.sampled_from([0, 0.7, 2]),
        "stop": st.sampled_from(["e", ["the", "a"]]),
        "logprobs": st.just(True),
        "tools": st.just([SEE]),
        "response_format": st.just({"type": "json_object"}),
    },
)


@given(body=REQUESTS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_stream_joined_is_the_whole_reply(llm: LLM, body):
    path = body.pop("path")
    async with serving(llm) as client:
        whole = await client.whole(path, messages=ASK, **body)
        chunks = await client.chunks(path, messages=ASK, **body)
    for choice in whole["choices"]:
        found, message = joined(chunks, choice["index"]), choice["message"]
        assert found["role"] == message["role"]
        assert found["content"] == (message["content"] or "")
        assert found["reasoning_content"] == message.get("reasoning_content", "")
        assert found["finish_reason"] == choice["finish_reason"]
        calls = [call["function"] for call in message.get("tool_calls", ())]
        assert list(found["calls"].values()) == calls
        shown = [
            entry
            for chunk in chunks
            for one in chunk["choices"]
            if one["index"] == choice["index"] and one["logprobs"]
            for entry in one["logprobs"]["content"]
        ]
        assert shown == ((choice["logprobs"] or {}).get("content", []))


@DIALECTS
async def test_all_chunks_share_a_head_and_the_first_has_the_role(llm: LLM, path):
    async with serving(llm) as client:
        chunks = await client.chunks(path, messages=ASK, max_tokens=4)
    heads = [{k: v for k, v in c.items() if k not in ("choices", "usage")} for c in chunks]
    assert all(head == heads[0] for head in heads)
    assert heads[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)


@pytest.mark.parametrize("asked", [None, {"include_usage": False}, {"include_usage": True}])
async def test_usage_comes_on_deepseeks_last_chunk_and_in_a_chunk_of_openais(llm: LLM, asked):
    body = {"messages": ASK, "max_tokens": 4, "temperature": 0}
    options = {} if asked is None else {"stream_options": asked}
    wanted = bool(asked and asked["include_usage"])
    async with serving(llm) as client:
        usage = (await client.whole(OPENAI, **body))["usage"]
        usage["prompt_cache_miss_tokens"] = usage["prompt_tokens"]
        deepseek = await client.chunks(DEEPSEEK, **body, **options)
        openai = await client.chunks(OPENAI, **body, **options)
    assert deepseek[-1]["usage"] == usage
    assert deepseek[-1]["choices"][0]["finish_reason"] == "length"
    assert deepseek[-1]["choices"][0]["delta"] == {"content": ""}
    assert all(("usage" in chunk) == wanted for chunk in deepseek[:-1])
    assert (openai[-1]["choices"] == []) == wanted
    assert [chunk.get("usage", "absent") for chunk in openai] == (
        [None] * (len(openai) - 1) + [usage] if wanted else ["absent"] * len(openai)
    )


async def test_with_n_answers_deepseeks_usage_waits_for_the_last_of_them(llm: LLM):
    body = {"messages": ASK, "max_tokens": 6, "n": 3, "seed": 1}
    async with serving(llm) as client:
        whole = await client.whole(DEEPSEEK, **body)
        chunks = await client.chunks(DEEPSEEK, **body)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks if "usage" in chunk] == [
        whole["usage"]["completion_tokens"]
    ]
    assert "usage" in chunks[-1]


async def test_thoughts_come_apart_from_the_answer_and_count_as_reasoning(llm: LLM):
    end = llm.tokenizer.control(END_THINK)
    body = {"messages": ASK, "max_tokens": 12, "thinking": {"type": "enabled"}, "seed": 1}
    async with serving(llm) as client:
        only = await client.whole(DEEPSEEK, **body)
        both = await client.whole(DEEPSEEK, **body, logit_bias={str(end): 6}, ignore_eos=True)
        chunks = await client.chunks(DEEPSEEK, **body)
    assert only["choices"][0]["message"]["content"] == ""
    assert only["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}
    message = both["choices"][0]["message"]
    assert message["content"]
    assert message["reasoning_content"]
    assert 0 < both["usage"]["completion_tokens_details"]["reasoning_tokens"] < 12
    first, second = (chunk["choices"][0]["delta"] for chunk in chunks[:2])
    assert first == {"role": "assistant", "content": None, "reasoning_content": ""}
    assert second["reasoning_content"]
    assert second["content"] is None


@pytest.mark.parametrize(
    ("layout", "body", "thinks"),
    [
        ("v3", {}, False),
        ("v3", {"model": "deepseek-chat", "reasoning_effort": "high"}, False),
        ("v3", {"thinking": {"type": "enabled"}}, None),
        ("r1", {}, True),
        ("r1", {"model": "deepseek-reasoner"}, True),
        ("r1", {"reasoning_effort": "none"}, None),
        ("v3.1", {}, False),
        ("v3.1", {"model": "deepseek-chat"}, False),
        ("v3.1", {"model": "deepseek-reasoner"}, True),
        ("v3.1", {"model": "deepseek-reasoner", "thinking": {"type": "disabled"}}, False),
        ("v3.1", {"model": "deepseek-reasoner", "tools": [SEE]}, False),
        ("v3.1", {"thinking": {"type": "enabled"}, "tools": [SEE]}, True),
        ("v3.1", {"chat_template_kwargs": {"thinking": True}}, True),
        ("v3.1", {"chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_who_thinks_is_the_layouts_habit_then_the_fields_word_then_the_names(
    llm: LLM, layout, body, thinks
):
    house = service_settings(layout=layout)
    request = parse(ChatRequest, {"model": "tiny", "messages": ASK, **body}, "openai", house)
    if thinks is None:
        with pytest.raises(Fault, match="thinks; leave out"):
            prepare(request, llm, house, "openai")
        return
    prepared = prepare(request, llm, house, "openai")
    (made,) = llm.prompts.requests(prepared.prompts, prepared.params, layout=prepared.layout)
    assert made.thinking == thinks


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        (OPENAI, "tiny", 200),
        (OPENAI, "deepseek-chat", 200),
        (DEEPSEEK, "deepseek-reasoner", 200),
        (OPENAI, "gpt-9", 404),
        (DEEPSEEK, "gpt-9", 400),
    ],
)
async def test_a_model_answers_to_its_names_and_to_no_other(llm: LLM, path, name, status):
    async with serving(llm) as client:
        reply = await client.post(path, model=name, messages=ASK, max_tokens=1)
    assert reply.status_code == status
    if status == 200:
        assert reply.json()["model"] == name
    else:
        assert reply.json()["error"]["param"] == "model"


async def test_a_prefix_is_continued_and_not_repeated(llm: LLM):
    messages = [*ASK, {"role": "assistant", "content": "the fish", "prefix": True}]
    turns = [Message("user", "the deep sea"), Message("assistant", "the fish", prefix=True)]
    prompt = render(turns, llm.tokenizer, "v3.1").tokens
    ends = [llm.tokenizer.control(USER)]
    expected = llm.generate([prompt], temperature=0, max_tokens=8, stop_token_ids=ends)[0]
    async with serving(llm) as client:
        reply = await client.whole(DEEPSEEK, messages=messages, temperature=0, max_tokens=8)
    assert reply["choices"][0]["message"]["content"] == expected.text


async def test_n_answers_differ_and_the_same_seed_gives_the_same_ones(llm: LLM):
    body = {"messages": ASK, "max_tokens": 8, "n": 4, "seed": 5}
    async with serving(llm) as client:
        first, again = await client.whole(OPENAI, **body), await client.whole(OPENAI, **body)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert first["usage"]["completion_tokens"] == 32
    prompt = render([Message("user", "the deep sea")], llm.tokenizer, "v3.1").tokens
    assert first["usage"]["prompt_tokens"] == len(prompt)  # shared by all four


async def test_logprobs_spell_the_answer_and_name_the_most_likely(llm: LLM):
    body = {"messages": ASK, "max_tokens": 12, "logprobs": True, "top_logprobs": 3, "seed": 2}
    async with serving(llm) as client:
        drawn = (await client.whole(OPENAI, **body))["choices"][0]
        greedy = (await client.whole(OPENAI, **body, temperature=0))["choices"][0]
    for choice in (drawn, greedy):
        entries = choice["logprobs"]["content"]
        names = {x.encode() for x in llm.tokenizer._control}
        spelled = b"".join(bytes(e["bytes"]) for e in entries if bytes(e["bytes"]) not in names)
        assert spelled.decode(errors="replace") == choice["message"]["content"]
        for entry in entries:
            best = [top["logprob"] for top in entry["top_logprobs"]]
            assert len(best) == 3
            assert best == sorted(best, reverse=True)
            assert entry["logprob"] <= best[0]
    assert all(
        entry["logprob"] == entry["top_logprobs"][0]["logprob"]
        for entry in greedy["logprobs"]["content"]
    )


async def test_logprobs_of_thoughts_are_a_list_of_their_own(llm: LLM):
    end = str(llm.tokenizer.control(END_THINK))
    body = {"messages": ASK, "max_tokens": 12, "thinking": {"type": "enabled"}, "seed": 1}
    async with serving(llm) as client:
        reply = await client.whole(
            DEEPSEEK, **body, logprobs=True, logit_bias={end: 6}, ignore_eos=True
        )
    found = reply["choices"][0]["logprobs"]
    thoughts = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert len(found["reasoning_content"]) == thoughts
    assert found["reasoning_content"][-1]["token"] == END_THINK
    assert len(found["content"]) == 12 - thoughts > 0


async def test_a_token_outside_the_twenty_most_likely_has_the_apis_word_for_unlikely(llm: LLM):
    body = {"messages": ASK, "max_tokens": 1, "logprobs": True, "n": 40, "temperature": 2}
    ranks = llm.chat(  # the same 40 draws do not matter: the distribution is the same for each
        "the deep sea", layout="v3.1", temperature=0, max_tokens=1, logprobs=20
    ).top_logprobs[0]
    likely = dict(ranks)
    async with serving(llm) as client:
        reply = await client.whole(OPENAI, **body, seed=1)
    entries = [e for c in reply["choices"] for e in c["logprobs"]["content"]]
    found = {tuple(entry["bytes"]): entry["logprob"] for entry in entries}
    known = {
        tuple(llm.tokenizer.decode_bytes([t], skip_control=False)): p for t, p in likely.items()
    }
    assert set(found) - set(known), "some draws were unlikely"
    assert set(found) & set(known), "some draws were likely"
    for spelled, logprob in found.items():
        assert logprob == pytest.approx(known.get(spelled, -9999.0), abs=1e-5)


async def test_an_answer_ends_where_the_model_would_speak_for_the_user(llm: LLM):
    user = llm.tokenizer.control(USER)
    async with serving(llm) as client:
        reply = await client.whole(OPENAI, messages=ASK, max_tokens=9, logit_bias={user: 100})
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == 1


async def test_the_mark_of_the_end_is_not_among_the_logprobs(llm: LLM):
    eos = llm.tokenizer.control(EOS)
    body = {"messages": ASK, "max_tokens": 9, "logprobs": True, "logit_bias": {str(eos): 100}}
    async with serving(llm) as client:
        reply = await client.whole(OPENAI, **body)
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["choices"][0]["message"]["content"] == ""
    assert reply["choices"][0]["logprobs"] is None or not reply["choices"][0]["logprobs"]["content"]


@pytest.mark.parametrize("layout", ["v3", "r1", "v3.1"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "see"}}])
async def test_a_required_tool_is_called_with_arguments_of_its_schema(llm: LLM, layout, choice):
    body = {"messages": ASK, "tools": [SEE], "tool_choice": choice, "parallel_tool_calls": False}
    bias = {str(llm.tokenizer.control(END_THINK)): 20} if layout == "r1" else {}
    async with serving(llm, layout=layout) as client:
        reply = await client.whole(OPENAI, **body, logit_bias=bias, max_tokens=400, temperature=0.5)
    message = reply["choices"][0]["message"]
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    (call,) = message["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "see"
    arguments = json.loads(call["function"]["arguments"])
    assert isinstance(arguments["dark"], bool)
    assert arguments["fish"] in ("a", "b")
    # R1 leaves a gap behind its thoughts; the others write nothing but the call.
    assert message["content"] in ((None, "\n\n") if layout == "r1" else (None,))


async def test_with_tool_choice_none_no_tool_is_called_however_much_the_model_wants_to(llm: LLM):
    begin = str(llm.tokenizer.control(TOOL_CALLS_BEGIN))
    body = {"messages": ASK, "tools": [SEE], "max_tokens": 8, "logit_bias": {begin: 100}}
    async with serving(llm) as client:
        none = await client.whole(OPENAI, **body, tool_choice="none", seed=1, logprobs=True)
    tokens = [entry["token"] for entry in none["choices"][0]["logprobs"]["content"]]
    assert TOOL_CALLS_BEGIN not in tokens
    assert "tool_calls" not in none["choices"][0]["message"]


async def test_history_with_calls_their_results_and_thoughts_is_read(llm: LLM):
    call = {"id": "call_1", "type": "function", "function": {"name": "see", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be dark"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "sea"}],
        },
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "dark"},
    ]
    async with serving(llm) as client:
        reply = await client.whole(DEEPSEEK, messages=messages, tools=[SEE], max_tokens=2)
    assert reply["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize("thinking", [True, False])
async def test_json_is_what_the_schema_asks_for_behind_the_thoughts_if_any(llm: LLM, thinking):
    body = {
        "messages": ASK, "response_format": FORM, "max_tokens": 300, "seed": 1,
        "thinking": {"type": "enabled" if thinking else "disabled"},
        "logit_bias": {str(llm.tokenizer.control(END_THINK)): 6} if thinking else {},
    }  # fmt: skip
    async with serving(llm) as client:
        reply = await client.whole(OPENAI, **body)
    message = reply["choices"][0]["message"]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert set(json.loads(message["content"])) == {"dark", "fish"}
    assert bool(message.get("reasoning_content")) == thinking


async def test_with_tools_and_a_schema_an_answer_is_either_a_call_or_that_json(llm: LLM):
    body = {"messages": ASK, "tools": [SEE], "response_format": FORM, "max_tokens": 400}
    begin = str(llm.tokenizer.control(TOOL_CALLS_BEGIN))
    async with serving(llm) as client:
        json_ = await client.whole(OPENAI, **body, seed=1, logit_bias={begin: -100})
        called = await client.whole(OPENAI, **body, seed=1, logit_bias={begin: 100})
    assert set(json.loads(json_["choices"][0]["message"]["content"])) == {"dark", "fish"}
    for call in called["choices"][0]["message"]["tool_calls"]:
        assert set(json.loads(call["function"]["arguments"])) == {"dark", "fish"}


@pytest.mark.parametrize(("path", "status"), [(OPENAI, 400), (DEEPSEEK, 422)])
@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {**FORM, "json_schema": {"name": "x", "schema": {"type": "fish"}}}},
        {"stop": ["x"] * 17},
        {"n": 10_000},
        {"temperature": -1},
        {"logit_bias": {"99999": 1}},
        {"messages": []},
        {"messages": [{"role": "user", "content": "sea " * 3000}]},
        {"tools": [SEE], "tool_choice": {"type": "function", "function": {"name": "other"}}},
    ],
    ids=lambda body: next(iter(body)),
)  # fmt: skip
async def test_what_cannot_be_served_is_refused_with_an_error_object(llm: LLM, path, status, body):
    async with serving(llm) as client:
        reply = await client.post(path, **{"messages": ASK, "max_tokens": 2, **body})
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert len(reply.content) < 4096
        assert await client.settled()


@pytest.mark.parametrize(
    ("asked", "mapped"), [(None, 0.3), (0, 0), (0.5, 0.15), (1, 0.3), (1.5, 0.8), (2, 1.3)]
)
def test_temperatures_are_deepseeks_where_the_service_says_so(llm: LLM, asked, mapped):
    for maps in (True, False):
        house = service_settings(map_temperature=maps)
        body = {"model": "tiny", "messages": ASK, "temperature": asked}
        request = parse(ChatRequest, body, "openai", house)
        expected = mapped if maps else (1 if asked is None else asked)
        found = prepare(request, llm, house, "openai").params.temperature
        assert found == pytest.approx(expected)


def test_every_wish_about_drawing_reaches_the_engine(llm: LLM):
    wishes = {
        "max_tokens": 7, "temperature": 0.4, "top_p": 0.8, "top_k": 9, "min_p": 0.1, "n": 2,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.2, "seed": 3,
        "ignore_eos": True,
    }  # fmt: skip
    lists = {"stop": ["x", "y"], "bad_words": ["sea"], "logit_bias": {"5": 2.0}}
    body = {"model": "tiny", "messages": ASK, "stop_token_ids": [8], **wishes, **lists}
    house = service_settings()
    params = prepare(parse(ChatRequest, body, "openai", house), llm, house, "openai").params
    assert {name: getattr(params, name) for name in wishes} == wishes
    assert params.stop == ("x", "y")
    assert params.bad_words == ("sea",)
    assert params.logit_bias == {5: 2.0}
    assert params.stop_token_ids == (8, llm.tokenizer.control(USER))


async def test_without_a_limit_openais_answer_may_fill_the_context_and_deepseeks_4096(llm: LLM):
    house = service_settings()
    request = parse(ChatRequest, {"model": "tiny", "messages": ASK}, "openai", house)
    assert prepare(request, llm, house, "openai").params.max_tokens == 2048  # the context
    assert prepare(request, llm, house, "deepseek").params.max_tokens == 4096


async def test_a_second_question_with_the_same_beginning_hits_the_cache(llm: LLM):
    messages = [{"role": "user", "content": "the deep sea is dark " * 40}]
    async with serving(llm) as client:
        first = await client.whole(DEEPSEEK, messages=messages, max_tokens=1)
        second = await client.whole(DEEPSEEK, messages=messages, max_tokens=1)
    assert first["usage"]["prompt_cache_hit_tokens"] == 0
    usage = second["usage"]
    assert usage["prompt_cache_hit_tokens"] >= usage["prompt_tokens"] // 64 * 64 - 64 > 0
    assert usage["prompt_cache_hit_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    total = usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"]
    assert total == usage["prompt_tokens"]


def test_results_are_read_in_the_order_of_their_calls_whatever_theirs_is():
    def turns(*ids: str) -> list[ChatMessage]:
        calls = [{"id": i, "function": {"name": i, "arguments": "{}"}} for i in ("a", "b", "c")]
        rows = [
            {"role": "user", "content": "the"},
            {"role": "assistant", "tool_calls": calls},
            *({"role": "tool", "tool_call_id": i, "content": f"of {i}"} for i in ids),
        ]
        return [ChatMessage.model_validate(row) for row in rows]

    wanted = messages_of(turns("a", "b", "c"))
    assert [message.content for message in wanted[2:]] == ["of a", "of b", "of c"]
    assert messages_of(turns("c", "a", "b")) == wanted
    for strayed in (turns("a", "d"), turns("a", "b", "c")[2:]):
        with pytest.raises(DataError, match="answers no call"):
            messages_of(strayed)
