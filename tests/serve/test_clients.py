"""The clients people have run unchanged against the service: openai, LangChain and LiteLLM.

The model is random, so what is tested is the wire: that each client understands every answer, and
that grammars make even such a model call tools and write JSON.
"""

import json
import os
from collections.abc import Iterator

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # before its import: no look outside

import litellm
import openai
import pytest
from langchain_core.tools import tool
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from tests.serve.wire import KEY, listening

# What the clients themselves do is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

HELLO = [{"role": "user", "content": "the deep sea"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "integer", "maximum": 9, "minimum": 1},
            },
            "required": ["unit", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["fish", "whale"]}, "deep": {"type": "boolean"}},
    "required": ["animal", "deep"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def url(model, tokenizer) -> Iterator[str]:
    with listening(LLM(model, tokenizer, options=EngineOptions(max_running=8))) as url:
        yield url


@pytest.fixture(scope="module")
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def deepseek(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_chats_and_streams_the_same(client):
    options = {"model": "tiny", "messages": HELLO, "max_tokens": 30, "seed": 1}
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_openai_gets_n_answers_and_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=5, n=3, seed=3, logprobs=True, top_logprobs=4
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        for entry in choice.logprobs.content:
            assert entry.logprob <= 0
            assert len(entry.top_logprobs) == 4
            assert entry.top_logprobs[0].logprob >= entry.logprob or entry.logprob == -9999.0
        spelled = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
        assert choice.message.content.encode() in spelled or "\ufffd" in choice.message.content


def test_openai_calls_tools_and_sends_their_results(client):
    options = {"model": "tiny", "messages": HELLO, "tools": [WEATHER], "tool_choice": "required"}
    answer = client.chat.completions.create(**options, max_tokens=200, seed=2)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        values = json.loads(call.function.arguments)
        assert call.function.name == "get_weather"
        assert values["unit"] in "CF"
        assert 1 <= values["days"] <= 9
    history = [*HELLO, choice.message.model_dump(exclude_none=True)]
    history += [
        {"role": "tool", "tool_call_id": call.id, "content": "dark"}
        for call in choice.message.tool_calls
    ]
    after = client.chat.completions.create(
        model="tiny", messages=history, max_tokens=5, tools=[WEATHER]
    )
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_openai_streams_tool_calls_in_fragments_that_join(client):
    named = {"type": "function", "function": {"name": "get_weather"}}
    options = {"model": "tiny", "messages": HELLO, "tools": [WEATHER], "tool_choice": named}
    whole = client.chat.completions.create(**options, max_tokens=200, seed=4)
    arguments, names, ids = "", [], []
    for chunk in client.chat.completions.create(**options, max_tokens=200, seed=4, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.index == 0:
                arguments += call.function.arguments or ""
                names += [call.function.name] if call.function.name else []
                ids += [call.id] if call.id else []
    assert arguments == whole.choices[0].message.tool_calls[0].function.arguments
    assert names == ["get_weather"]
    assert len(ids) == 1


def test_openai_parses_answers_held_to_a_schema(client):
    class Animal(BaseModel):
        animal: str
        deep: bool

    schema = {"name": "animal", "schema": SCHEMA, "strict": True}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=100, seed=5,
        response_format={"type": "json_schema", "json_schema": schema},
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content)["animal"] in ("fish", "whale")
    parsed = client.chat.completions.parse(
        model="tiny",
        messages=HELLO,
        max_tokens=300,
        seed=6,
        temperature=0.1,
        response_format=Animal,
    )
    assert isinstance(parsed.choices[0].message.parsed, Animal)


def test_openai_completes_texts_and_scores_prompts(client):
    answer = client.completions.create(
        model="tiny", prompt=["the deep", "fish see"], max_tokens=1, echo=True, logprobs=1
    )
    for choice, prompt in zip(answer.choices, ["the deep", "fish see"], strict=True):
        assert choice.text.startswith(prompt)
        assert choice.logprobs.token_logprobs[0] is None
        assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs[1:])
        assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset)
    streamed = client.completions.create(
        model="tiny", prompt="the", max_tokens=8, seed=1, stream=True
    )
    plain = client.completions.create(model="tiny", prompt="the", max_tokens=8, seed=1)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == plain.choices[0].text


def test_openai_raises_what_it_raises_elsewhere(client, url):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
    assert bad.value.param == "temperature"
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    broken = {"name": "x", "schema": {"type": "nothing"}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": broken},
        )
    assert "tiny" in [model.id for model in client.models.list()]


def test_the_dialect_of_deepseek_as_its_guides_use_it(deepseek, url):
    answer = deepseek.chat.completions.create(
        model="deepseek-reasoner", messages=HELLO, max_tokens=30, seed=1
    )
    message = answer.choices[0].message
    assert message.reasoning_content
    usage = answer.usage.model_dump()
    assert (
        usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"]
        == usage["prompt_tokens"]
    )
    reasoning, last = "", None
    for chunk in deepseek.chat.completions.create(
        model="deepseek-reasoner", messages=HELLO, max_tokens=30, seed=1, stream=True
    ):
        reasoning += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        last = chunk
    assert reasoning == message.reasoning_content
    assert last.usage.completion_tokens == answer.usage.completion_tokens
    assert last.choices[0].finish_reason
    history = [
        *HELLO,
        {"role": "assistant", "content": "dark", "reasoning_content": "deep"},
        *HELLO,
    ]
    assert deepseek.chat.completions.create(model="deepseek-chat", messages=history, max_tokens=2)
    with openai.OpenAI(base_url=f"{url}/beta", api_key=KEY) as beta:
        middle = beta.completions.create(
            model="deepseek-chat", prompt="the", suffix="sea", max_tokens=4
        )
        assert middle.object == "text_completion"
        begun = [*HELLO, {"role": "assistant", "content": "the fish", "prefix": True}]
        assert beta.chat.completions.create(
            model="deepseek-chat", messages=begun, max_tokens=4, stop=["see"]
        )
    with pytest.raises(openai.UnprocessableEntityError):
        deepseek.chat.completions.create(model="deepseek-chat", messages=HELLO, temperature=3)


@tool
def count_fish(kind: str) -> int:
    """How many fish of a kind there are."""
    return len(kind)


def test_langchain_openai(url):
    chat = ChatOpenAI(
        model="tiny", base_url=f"{url}/v1", api_key=KEY, max_tokens=40, seed=1, max_retries=0
    )
    whole = chat.invoke("the deep sea")
    assert "".join(chunk.content for chunk in chat.stream("the deep sea")) == whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    bound = chat.bind_tools([count_fish], tool_choice="required")
    called = bound.invoke("the deep sea", max_tokens=300)
    assert called.tool_calls or called.invalid_tool_calls
    structured = chat.bind(max_tokens=300).with_structured_output(
        SCHEMA | {"title": "animal"}, method="json_schema"
    )
    assert set(structured.invoke("a fish")) == {"animal", "deep"}


def test_langchain_deepseek(url):
    chat = ChatDeepSeek(
        model="deepseek-reasoner", api_base=url, api_key=KEY, max_tokens=20, max_retries=0
    )
    answer = chat.invoke("the deep sea")
    assert answer.additional_kwargs["reasoning_content"]
    streamed = [
        chunk.additional_kwargs.get("reasoning_content", "") for chunk in chat.stream("the")
    ]
    assert any(streamed)


def test_litellm_in_both_dialects(url):
    options = {"messages": HELLO, "api_key": KEY, "max_tokens": 20, "num_retries": 0}
    answer = litellm.completion(model="openai/tiny", base_url=f"{url}/v1", seed=1, **options)
    chunks = litellm.completion(
        model="openai/tiny", base_url=f"{url}/v1", seed=1, stream=True, **options
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == (answer.choices[0].message.content or "")
    thought = litellm.completion(model="deepseek/deepseek-reasoner", base_url=url, **options)
    assert thought.choices[0].message.reasoning_content
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model="openai/tiny", base_url=f"{url}/v1", temperature=-2, **options)
