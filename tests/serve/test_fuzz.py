"""Two thousand requests nobody meant: no 5xx, no exit, and every refusal says what was wrong."""

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.model.transformer import DeepSeekV3
from abyssal.serve.store import Store
from tests.serve.wire import listening

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CHECKS = [  # not what schemathesis thinks a service should refuse: that is a matter of taste
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip
LIMIT_BYTES = 8 * 2**20


@pytest.fixture(scope="module")
def url(model, tokenizer, tmp_path_factory) -> Iterator[str]:
    """A service whose answers are short: the model reads 160 tokens."""
    history = tmp_path_factory.mktemp("data") / "history.sqlite3"
    config = replace(model.config, max_position_embeddings=160)
    short = DeepSeekV3(config)
    short.load_state_dict(model.state_dict())
    llm = LLM(short.eval().requires_grad_(False), tokenizer, options=EngineOptions(max_running=8))
    with Store(history) as store, listening(llm, history=store, api_keys=()) as url:
        yield url


@pytest.fixture(scope="module")
def http(url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as http:
        yield http


def assert_sound(reply: httpx.Response) -> None:
    """An answer, or a refusal a person can act on."""
    assert reply.status_code < 500, (reply.status_code, reply.text[:500])
    if reply.status_code < 400:
        return
    assert len(reply.content) < 4096
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]


FEW = settings(
    max_examples=40, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
)


def test_every_operation_of_the_description_keeps_its_word(url):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 18
    for operation in operations:

        @FEW
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS, timeout=30)

        check()


NUMBERS = st.one_of(
    st.integers(-3, 5), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -1, 0, 1.5, 1e308]),
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=20), st.sampled_from(["", "\0", "🐟", "a" * 5000, "\ufffd", "<think>"])
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from([
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "min_p", "n", "stop", "seed", "logprobs", "top_logprobs", "logit_bias", "tools",
    "tool_choice", "response_format", "stream", "stream_options", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "thinking", "suffix", "echo", "user", "bad_words",
    "ignore_eos", "stop_token_ids", "chat_template_kwargs", "reasoning_effort", "tokens",
])  # fmt: skip
PATHS = st.sampled_from([
    "/v1/chat/completions", "/chat/completions", "/beta/chat/completions", "/v1/completions",
    "/beta/completions", "/tokenize", "/detokenize",
])  # fmt: skip


@settings(max_examples=1600, suppress_health_check=list(HealthCheck))
@given(path=PATHS, changes=st.dictionaries(FIELDS, JUNK, max_size=3), prompt=TEXTS)
def test_any_body_is_answered_or_refused(http, path, changes, prompt):
    body = {
        "model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": prompt}],
        "prompt": prompt, "tokens": [1, 2],
    } | changes  # fmt: skip
    assert_sound(http.post(path, json=body))


def chat(**changes: object) -> bytes:
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "the"}]}
    return json.dumps(body | changes).encode()


PLAIN = chat()
DEEP = b'{"a":' * 70 + b"1" + b"}" * 70
REFUSED = {
    "9 MiB of body": chat(user="a" * (LIMIT_BYTES + 2**20)),
    "depth 70": PLAIN[:-1] + b', "x": ' + DEEP + b"}",
    "depth 100,000": b"[" * 100_000,
    "NaN": PLAIN.replace(b'"max_tokens": 2', b'"temperature": NaN'),
    "Infinity": PLAIN.replace(b'"max_tokens": 2', b'"temperature": Infinity'),
    "1e999": PLAIN.replace(b'"max_tokens": 2', b'"temperature": 1e999'),
    "a duplicate key": PLAIN[:-1] + b', "model": "tiny"}',
    "a lone surrogate": chat().replace(b'"the"', b'"\\ud800"'),
    "a lone surrogate in a key": PLAIN[:-1] + b', "\\udc00": 1}',
    "bytes that are not UTF-8": PLAIN.replace(b"the", b"\xff\xfe"),
    "no JSON": b"{",
    "nothing": b"",
    "an array": b"[]",
    "a huge n": chat(n=10**9),
    "n = 0": chat(n=0),
    "negative max_tokens": chat(max_tokens=-1),
    "negative seed": chat(seed=-(2**70)),
    "top_logprobs without logprobs": chat(top_logprobs=3),
    "top_logprobs = 21": chat(logprobs=True, top_logprobs=21),
    "17 stops": chat(stop=[str(i) for i in range(17)]),
    "an empty stop": chat(stop=[""]),
    "an unknown model": chat(model="gpt-9"),
    "an unknown token": chat(logit_bias={"999999": 1}),
    "a token that is no number": chat(logit_bias={"a": 1}),
    "no messages": chat(messages=[]),
    "an unknown role": chat(messages=[{"role": "king", "content": "a"}]),
    "a result of no call": chat(messages=[{"role": "tool", "content": "a"}]),
    "129 tools": chat(
        tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]
    ),
    "a tool of no name": chat(tools=[{"type": "function", "function": {"name": "a b"}}]),
    "a grammar that cannot be": chat(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "fish"}},
        }
    ),
    "digits without end": PLAIN.replace(b'"max_tokens": 2', b'"max_tokens": ' + b"9" * 10_000),
    "a prompt beyond the context": chat(messages=[{"role": "user", "content": "deep sea " * 500}]),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(http, path, what):
    reply = http.post(path, content=REFUSED[what], headers={"Content-Type": "application/json"})
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text)
    assert_sound(reply)
    assert http.post(path, content=PLAIN, headers={"Content-Type": "application/json"}).is_success


def test_a_service_that_was_asked_all_this_still_answers_as_before(http):
    body = {"model": "tiny", "prompt": "the deep sea", "max_tokens": 5, "temperature": 0}
    first, again = (http.post("/v1/completions", json=body).json()["choices"] for _ in range(2))
    assert first == again
