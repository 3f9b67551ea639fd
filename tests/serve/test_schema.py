"""A request is what both services take, exactly typed; other things are faults with a place."""

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from abyssal.serve import answers, schema
from abyssal.serve.faults import Fault
from abyssal.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse,
)
from abyssal.serve.settings import Settings
from abyssal.tokenizer.message import Message

SETTINGS = Settings(name="tiny", layout="v3.1")
USER = {"role": "user", "content": "hi"}
CHAT = {"model": "tiny", "messages": [USER]}
TEXT = {"model": "tiny", "prompt": "Once"}
PART = {"type": "text", "text": "a"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def chat(**fields) -> ChatRequest:
    return parse(ChatRequest, {**CHAT, **fields}, "openai", SETTINGS)


def completion(**fields) -> CompletionRequest:
    return parse(CompletionRequest, {**TEXT, **fields}, "openai", SETTINGS)


def refusal_of(call, *args, **fields) -> Fault:
    with pytest.raises(Fault) as refusal:
        call(*args, **fields)
    assert len(refusal.value.to_response().body) < 4096
    return refusal.value


def call(name="weather", **fields):
    return {
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": "{}"},
        **fields,
    }


# What is taken


def test_a_request_as_the_clients_of_openai_send_it():
    request = chat(
        messages=[
            {"role": "developer", "content": "Be brief.", "name": "ops"},
            {"role": "user", "content": [PART, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "refusal": None, "annotations": [],
             "audio": None, "function_call": None, "tool_calls": [call()]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
        n=2, seed=7, logit_bias={"42": -100, "7": 0.5}, max_completion_tokens=5, logprobs=True,
        top_logprobs=20, parallel_tool_calls=False, tools=[WEATHER], user="someone",
        tool_choice={"type": "function", "function": {"name": "weather"}},
        response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}
        },
        stream=True, stream_options={"include_usage": True, "include_obfuscation": False},
        store=False, metadata={"a": "b"}, service_tier="auto", modalities=["text"], verbosity="low",
    )  # fmt: skip
    assert request.messages[1].content == "ab"
    assert request.logit_bias == {42: -100.0, 7: 0.5}
    assert request.most_tokens == 5
    assert request.tool_choice.function.name == "weather"
    assert request.response_format.json_schema.schema_ == {}


def test_a_request_as_the_clients_of_deepseek_send_it():
    stops = [str(k) for k in range(16)]
    request = chat(
        messages=[
            USER,
            {"role": "assistant", "content": "ho", "reasoning_content": "hm"},
            USER,
            {"role": "assistant", "content": "```", "reasoning_content": "so", "prefix": True},
        ],
        max_tokens=8192, temperature=2, top_p=1, stop=stops, thinking={"type": "enabled"},
        frequency_penalty=-2, presence_penalty=2, response_format={"type": "json_object"},
        logprobs=False, stream=False, tools=None, tool_choice="none", user_id="x",
    )  # fmt: skip
    assert request.stop == stops
    assert request.thinks is True
    assert request.messages[-1].prefix


def test_the_messages_taken_are_messages_of_the_house():
    request = chat(messages=[
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call()]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ])  # fmt: skip
    asked, told = (Message.from_dict(one.model_dump(exclude_none=True)) for one in request.messages)
    assert asked.tool_calls[0].name == "weather"
    assert asked.reasoning == "hm"
    assert (told.content, told.tool_call_id) == ("rain", "call_1")


@pytest.mark.parametrize(
    ("said", "thinks"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, False),
        ({"chat_template_kwargs": {"thinking": True, "other": 1}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, None),
        ({"reasoning_effort": "high", "thinking": {"type": "enabled"}}, True),
    ],
)
def test_thinking_is_switched_in_any_of_its_ways(said, thinks):
    assert chat(**said).thinks is thinks


def test_ways_that_disagree_are_refused():
    fault = refusal_of(chat, thinking={"type": "enabled"}, chat_template_kwargs={"thinking": False})
    assert fault.param == "thinking"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_prompts_are_texts_or_tokens_one_or_many(prompt, prompts):
    assert completion(prompt=prompt).prompt == prompts


def test_evaluations_may_ask_for_the_likelihood_of_the_prompt_alone():
    request = completion(prompt=[[1, 2]], echo=True, max_tokens=0, logprobs=1, seed=1234)
    assert (request.max_tokens, request.echo, request.logprobs) == (0, True, 1)


def test_the_middle_is_asked_for_with_a_suffix():
    assert completion(prompt="def f(", suffix="return 1").suffix == "return 1"


@given(st.sampled_from(sorted(ChatRequest.model_fields.keys() - CHAT.keys())))
def test_null_is_as_good_as_nothing(field):
    assert chat(**{field: None}) == chat()


@given(st.dictionaries(st.text(max_size=8).map("x-".__add__), st.integers() | st.text()))
def test_what_nobody_knows_is_ignored(fields):
    assert chat(**fields) == chat()


# What is not

NUMBERS = {
    "temperature": (0, 2), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2),
    "min_p": (0, 1), "n": (1, 128), "top_logprobs": (0, 20), "max_tokens": (1, 2**63 - 1),
    "max_completion_tokens": (1, 2**63 - 1), "seed": (0, 2**63 - 1), "top_k": (-1, 2**63 - 1),
}  # fmt: skip
INTEGERS = {
    "n",
    "top_logprobs",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "top_k",
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrong", [True, "1", [1], {"a": 1}, float("nan"), float("inf"), -1e308])
def test_a_number_is_a_finite_number_and_nothing_that_resembles_one(name, wrong):
    fault = refusal_of(chat, logprobs=True, **{name: wrong})
    assert (fault.status, fault.param) == (400, name)


@pytest.mark.parametrize("name", sorted(INTEGERS))
def test_an_integer_has_no_point(name):
    assert refusal_of(chat, logprobs=True, **{name: 1.0}).param == name


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_end_where_the_sheet_says(name):
    low, high = NUMBERS[name]
    for fits in (low, high):
        assert getattr(chat(logprobs=True, **{name: fits}), name) == fits
    for beyond in (low - 1, high + 1, -(2**63), 2**64, 10**99):
        assert refusal_of(chat, logprobs=True, **{name: beyond}).param == name


@pytest.mark.parametrize(("name", "fits"), [("top_p", 1), ("repetition_penalty", 100)])
def test_these_are_above_zero(name, fits):
    assert getattr(chat(**{name: fits}), name) == fits
    for beyond in (0, -1, fits * 1.01):
        assert refusal_of(chat, **{name: beyond}).param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [None]}, "messages.0"),
        ({"messages": [{}]}, "messages.0.role"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "user"}]}, "messages.1.content"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [PART, {"type": "image_url"}]}]},
         "messages.0.content.1.type"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "text"}]}]},
         "messages.1.content.0.text"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{**USER, "tool_calls": [call()]}]}, "messages.0.tool_calls"),
        ({"messages": [{**USER, "reasoning_content": "x"}]}, "messages.0.reasoning_content"),
        ({"messages": [{**USER, "prefix": True}]}, "messages.0.prefix"),
        ({"messages": [{"role": "assistant", "content": "a", "prefix": True}, USER]},
         "messages.0.prefix"),
        ({"messages": [{"role": "assistant", "content": "", "prefix": 1}]}, "messages.0.prefix"),
        ({"messages": [{"role": "assistant", "tool_calls": [call()], "prefix": True}]},
         "messages.0.prefix"),
        ({"messages": [{"role": "assistant", "tool_calls": [call("a b")]}]},
         "messages.0.tool_calls.0.function.name"),
        ({"messages": [{"role": "assistant", "tool_calls": [call(function={"name": "f"})]}]},
         "messages.0.tool_calls.0.function.arguments"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["a", None]}, "stop.1"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 1025}, "stop"),
        ({"stop": ["b", "a" * 10**6]}, "stop"),
        ({"bad_words": "a"}, "bad_words"),
        ({"bad_words": ["a" * 10**6]}, "bad_words"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [2**70]}, "stop_token_ids.0"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}},
         "stream_options.include_usage"),
        ({"n": 129}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 1, "logprobs": False}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 11: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": float("nan")}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"logit_bias": {"1": 1, "01": 2}}, "logit_bias"),
        ({"logit_bias": {str(k): 1 for k in range(1025)}}, "logit_bias"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tools": [{**WEATHER, "function": {"name": "a" * 65}}]}, "tools.0.function.name"),
        ({"tools": [{**WEATHER, "function": {"name": "a\n"}}]}, "tools.0.function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "some", "tools": [WEATHER]}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": ["auto"]}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [WEATHER]},
         "tool_choice.function.name"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"thinking": "yes"}}, "chat_template_kwargs.thinking"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_chat_is_named_by_its_place(fields, param):
    fault = refusal_of(chat, **fields)
    assert fault.param == param
    assert fault.message.startswith(param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [1, True]}, "prompt.1"),
        ({"prompt": [[1], [-1]]}, "prompt.1.0"),
        ({"prompt": [1.0]}, "prompt.0"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 100}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "a", "echo": True}, "echo"),
        ({"suffix": "a", "prompt": [1]}, "suffix"),
        ({"suffix": 5}, "suffix"),
    ],
)
def test_a_mistake_in_a_completion_is_named_by_its_place(fields, param):
    fault = refusal_of(completion, **fields)
    assert fault.param == param


@pytest.mark.parametrize(
    ("request_of", "name", "asks", "neutral"),
    [
        (chat, "functions", [{"name": "f"}], []),
        (chat, "function_call", {"name": "f"}, "auto"),
        (chat, "audio", {"voice": "alloy"}, None),
        (chat, "modalities", ["text", "audio"], ["text"]),
        (chat, "guided_json", {"type": "object"}, None),
        (chat, "min_tokens", 5, 0),
        (chat, "use_beam_search", True, False),
        (chat, "length_penalty", 0.5, 1.0),
        (chat, "suffix", "x", None),
        (completion, "response_format", {"type": "json_object"}, None),
        (completion, "tools", [WEATHER], []),
        (completion, "prompt_logprobs", 5, None),
    ],
)
def test_what_would_change_the_answer_and_is_not_served_is_refused(request_of, name, asks, neutral):
    fault = refusal_of(request_of, **{name: asks})
    assert (fault.param, fault.code) == (name, "unsupported_parameter")
    assert request_of(**{name: neutral}) == request_of()


def test_best_of_as_many_as_are_wanted_is_no_ranking():
    assert completion(best_of=1).best_of == 1
    assert completion(best_of=3, n=3).n == 3


@pytest.mark.parametrize("body", [None, [], [CHAT], "x", 5, True])
@pytest.mark.parametrize("dialect", ["openai", "deepseek"])
def test_a_body_that_is_no_object_is_malformed_in_both_dialects(body, dialect):
    assert refusal_of(parse, ChatRequest, body, dialect, SETTINGS).status == 400


def test_values_out_of_range_are_422_in_deepseeks_dialect():
    for fields in ({"temperature": 3}, {"messages": []}, {"audio": {"a": 1}}, {"n": 129}):
        body = {**CHAT, **fields}
        assert refusal_of(parse, ChatRequest, body, "deepseek", SETTINGS).status == 422


def test_a_million_messages_are_refused_at_once():
    begin_s = time.perf_counter()
    for one in (USER, {}, None):
        assert refusal_of(chat, messages=[one] * 10**6).param == "messages"
    many = dataclasses.replace(SETTINGS, max_messages=10**6)
    body = {**CHAT, "messages": [{}] * 10**6}
    fault = refusal_of(parse, ChatRequest, body, "openai", many)
    assert fault.param == "messages.0.role"
    assert time.perf_counter() - begin_s < 2


def test_limits_are_those_of_the_settings():
    narrow = dataclasses.replace(SETTINGS, max_n=2, max_stops=1, max_messages=2, max_answers=3)
    for fields in ({"n": 3}, {"stop": ["a", "b"]}, {"messages": [USER] * 3}):
        assert refusal_of(parse, ChatRequest, {**CHAT, **fields}, "openai", narrow)
    body = {**TEXT, "prompt": ["a", "b"], "n": 2}
    assert refusal_of(parse, CompletionRequest, body, "openai", narrow).param == "prompt"


def test_tokenize_takes_a_text_or_a_conversation():
    for body in ({"prompt": "a"}, {"messages": [USER]}):
        assert parse(TokenizeRequest, body, "openai", SETTINGS)
    for body in ({}, {"prompt": "a", "messages": [USER]}):
        assert refusal_of(parse, TokenizeRequest, body, "openai", SETTINGS).param == "prompt"
    assert parse(DetokenizeRequest, {"tokens": []}, "openai", SETTINGS).tokens == []
    for tokens in ([-1], [2**31], [True], "1", None):
        fault = refusal_of(parse, DetokenizeRequest, {"tokens": tokens}, "openai", SETTINGS)
        assert fault.param.startswith("tokens")


# Anything at all

KNOWN = sorted(
    {*ChatRequest.model_fields, *CompletionRequest.model_fields, "functions", "audio", "min_tokens"}
)
KEYS = ["type", "role", "content", "name", "function", "text", "json_schema", "tool_calls"]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(KNOWN)
)
WILD = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.sampled_from(KEYS)), inner, max_size=4),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, TokenizeRequest])
@given(fields=st.dictionaries(st.sampled_from(KNOWN), WILD, max_size=4), whole=st.booleans())
def test_any_object_is_a_request_or_a_small_fault(model, fields, whole):
    body = {**CHAT, **TEXT, **fields} if whole else fields
    try:
        outcome = parse(model, body, "openai", SETTINGS)
    except Fault as fault:
        outcome = fault
    if isinstance(outcome, Fault):
        assert outcome.status == 400
        assert len(outcome.to_response().body) < 4096
    else:
        assert isinstance(outcome, model)


@pytest.mark.parametrize("character", ["A", "\x00", "😀", '"', "\u2028"])
def test_no_fault_repeats_more_than_60_characters_wherever_they_were(character):
    long = character * 50_000
    for fields in (
        {"model": long}, {"messages": [{"role": long}]}, {"messages": long}, {"stop": long},
        {"temperature": long}, {"logit_bias": {long: 1}}, {"tool_choice": long},
        {"tools": [{"type": long}]}, {"tools": [{"type": "function", "function": {"name": long}}]},
        {"response_format": {"type": long}},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"thinking": {"type": long}}, {"seed": long}, {"stream_options": long}, {"bad_words": long},
    ):  # fmt: skip
        fault = refusal_of(chat, **fields)
        said = fault.message + str(fault.param)
        assert said.count(character) + said.count("\\u0000") <= 60


def test_everything_has_a_description_in_json_schema():
    found = [one for module in (schema, answers) for one in vars(module).values()]
    models = [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]
    for model in {*models} - {BaseModel}:
        assert model.model_json_schema()["type"] == "object"
    assert {ChatRequest, answers.ChatAnswer} < {*models}
    stop = ChatRequest.model_json_schema()["properties"]["stop"]
    assert {"type": "string"} in stop["anyOf"]
