"""Tools are declared as the API has them, and a grammar holds calls to form and schema."""

import json
import random

import llguidance
import llguidance.numpy as bits
import pytest

from abyssal.errors import DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.calls import CallParser, calls_parts, join_calls
from abyssal.tokenizer.control import TOOL_CALLS_BEGIN, TOOL_CALLS_END
from abyssal.tokenizer.message import ToolCall
from abyssal.tokenizer.tools import Tool, call_grammar, tools_parts

LAYOUTS = ["v3", "r1", "v3.1"]
WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    {
        "type": "object",
        "properties": {
            "city": {"enum": ["Rome", 'the "`deep`"']},
            "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "maxItems": 2},
        },
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 7}},
    },
    strict=True,
)
NOW = Tool("now", parameters={"additionalProperties": False})
FUNCTION = {
    "name": "get_weather",
    "description": WEATHER.description,
    "parameters": WEATHER.parameters,
    "strict": True,
}


class Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer):
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        self.tokens = list(tokenizer.spelled)
        self.special_token_ids = sorted(tokenizer.control_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


@pytest.fixture(scope="module")
def vocabulary(tiny) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Vocabulary(tiny)))


def matcher(vocabulary, source: str) -> llguidance.LLMatcher:
    found = llguidance.LLMatcher(vocabulary, llguidance.grammar_from("lark", source), log_level=0)
    assert not found.is_error(), found.get_error()
    return found


def tokens_of(calls: list[ToolCall], layout: str, tokenizer: Tokenizer) -> list[int]:
    tokens: list[int] = []
    for part in calls_parts(calls, layout):
        name = part.content
        tokens += [tokenizer.control(name)] if part.is_control else tokenizer.encode(name)
    return tokens


def accepts(found: llguidance.LLMatcher, tokens: list[int]) -> bool:
    """Whether an answer may consist of these tokens."""
    return found.try_consume_tokens(tokens) == len(tokens) and found.is_accepting()


def random_answer(found: llguidance.LLMatcher, tokenizer: Tokenizer, rng: random.Random):
    """Tokens drawn at random from those allowed, to the end of the answer."""
    tokens: list[int] = []
    mask = bits.allocate_token_bitmask(1, tokenizer.vocab_size)
    while not found.is_stopped():
        bits.fill_next_token_bitmask(found, mask)
        allowed = [t for t in range(tokenizer.vocab_size) if mask[0, t // 32] >> (t % 32) & 1]
        tokens.append(rng.choice(allowed))
        assert found.consume_token(tokens[-1])
    return tokens


def read(tokens: list[int], layout: str, tokenizer: Tokenizer) -> tuple[tuple[ToolCall, ...], str]:
    parser, pieces, text = CallParser(layout), [], ""
    for token in tokens:
        said = tokenizer.decode([token], skip_control=False)
        is_control = token in tokenizer.control_ids
        parsed = (parser.push_control if is_control else parser.push_text)(said)
        pieces, text = [*pieces, *parsed.calls], text + parsed.text
    return join_calls(pieces), text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parallel", [False, True])
def test_whatever_is_drawn_under_the_grammar_is_calls_that_follow_their_schemas(
    tiny, vocabulary, layout, parallel
):
    rng = random.Random(0)
    source = call_grammar([WEATHER, NOW], layout, tiny, parallel=parallel)
    seen = set()
    for _ in range(15):
        tokens = random_answer(matcher(vocabulary, source), tiny, rng)
        calls, text = read(tokens, layout, tiny)
        assert text == ""
        assert len(calls) == 1 or parallel
        for call in calls:
            seen.add(call.name)
            values = json.loads(call.arguments)
            if call.name == "now":
                assert values == {}
            else:
                assert values.pop("city") in ("Rome", 'the "`deep`"')
                assert all(1 <= day <= 7 for day in values.pop("days", []))
                assert values == {}
    assert seen == {"now", "get_weather"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_grammar_is_of_calls_and_of_nothing_else(tiny, vocabulary, layout):
    source = call_grammar([WEATHER, NOW], layout, tiny)
    rome = ToolCall("get_weather", '{"city": "Rome", "days": [1, 7]}')
    good = [[rome], [rome, ToolCall("now", "{}")], [ToolCall("get_weather", '{"city":"Rome"}')]]
    for calls in good:
        assert accepts(matcher(vocabulary, source), tokens_of(calls, layout, tiny))
    bad = ['{"city": "Oslo"}', "{}", "", '{"city": "Rome", "x": 1}', '{"city": "Rome"} {}']
    for arguments in bad:
        calls = [ToolCall("get_weather", arguments)]
        assert not accepts(matcher(vocabulary, source), tokens_of(calls, layout, tiny))
    for tokens in (
        tokens_of([ToolCall("later", "{}")], layout, tiny),
        tokens_of([], layout, tiny),
        tokens_of([rome], layout, tiny)[:-1],
        tiny.encode("It rains.") + tokens_of([rome], layout, tiny),
        tiny.encode("".join(part.content for part in calls_parts([rome], layout))),
    ):
        assert not accepts(matcher(vocabulary, source), tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_choice_and_the_number_of_calls_can_be_narrowed(tiny, vocabulary, layout):
    now, rome = ToolCall("now", "{}"), ToolCall("get_weather", '{"city": "Rome"}')

    def may_be(calls, **options):
        source = call_grammar([WEATHER, NOW], layout, tiny, **options)
        return accepts(matcher(vocabulary, source), tokens_of(calls, layout, tiny))

    assert may_be([now], required_name="now")
    assert may_be([now, now], required_name="now")
    assert not may_be([rome], required_name="now")
    assert may_be([rome], parallel=False)
    assert not may_be([rome, now], parallel=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_optional_answer_is_held_from_behind_its_first_control_token_on(
    tiny, vocabulary, layout
):
    source = call_grammar([NOW], layout, tiny, optional=True)
    tokens = tokens_of([ToolCall("now", "{}")], layout, tiny)
    assert tokens[0] == tiny.control(TOOL_CALLS_BEGIN)
    assert tokens[-1] == tiny.control(TOOL_CALLS_END)
    assert accepts(matcher(vocabulary, source), tokens[1:])
    assert not accepts(matcher(vocabulary, source), tokens)


def test_r1_may_leave_a_line_between_its_thought_and_a_call(tiny, vocabulary):
    for layout, gap in [("r1", True), ("v3", False), ("v3.1", False)]:
        source = call_grammar([NOW], layout, tiny)
        tokens = tiny.encode("\n\n") + tokens_of([ToolCall("now", "{}")], layout, tiny)
        assert accepts(matcher(vocabulary, source), tokens) == gap


def test_space_inside_arguments_comes_to_an_end(tiny, vocabulary):
    source = call_grammar([NOW], "v3.1", tiny)
    for count, is_allowed in [(0, True), (32, True), (33, False)]:
        tokens = tokens_of([ToolCall("now", "{" + " " * count + "}")], "v3.1", tiny)
        assert accepts(matcher(vocabulary, source), tokens) == is_allowed


def test_what_cannot_be_held_to_is_an_error_for_strict_tools_alone(tiny, vocabulary):
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "moon"}}}
    source = call_grammar([Tool("f", "", schema)], "v3", tiny)
    assert accepts(
        matcher(vocabulary, source), tokens_of([ToolCall("f", '{"a": "b"}')], "v3", tiny)
    )
    with pytest.raises(AssertionError, match="moon"):
        matcher(vocabulary, call_grammar([Tool("f", "", schema, strict=True)], "v3", tiny))


def test_a_hundred_tools_make_one_grammar(tiny, vocabulary):
    tools = [Tool(f"f-{i}", "", WEATHER.parameters) for i in range(128)]
    source = call_grammar(tools, "v3.1", tiny)
    tokens = tokens_of([ToolCall("f-127", '{"city": "Rome"}')], "v3.1", tiny)
    assert accepts(matcher(vocabulary, source), tokens)


def test_the_json_of_a_client_is_a_tool():
    assert Tool.from_dict({"type": "function", "function": FUNCTION}) == WEATHER
    bare = {"function": {"name": "now", "description": None, "parameters": None, "strict": None}}
    assert Tool.from_dict(bare) == Tool("now")


def test_all_of_a_tool_is_declared():
    text = "".join(part.content for part in tools_parts([WEATHER, NOW], "v3.1"))
    schema = json.dumps(WEATHER.parameters)
    assert text.startswith(
        f"## Tools\n\n### get_weather\nDescription: The weather in a city.\n\nParameters: {schema}"
        '\n\n### now\nParameters: {"additionalProperties": false}\n\n'
    )
    assert "città" in tools_parts([Tool("f", "", {"title": "città"})], "v3.1")[0].content
    assert tools_parts([], "v3.1") == []


@pytest.mark.parametrize(
    ("tool", "complaint"),
    [
        ("f", "an object with a function"),
        ({"type": "function"}, "an object with a function"),
        ({"type": "custom", "function": {"name": "f"}}, "type 'custom'"),
        ({"function": {}}, "no name"),
        ({"function": {"name": 5}}, "name of a tool is 5; a string"),
        ({"function": {"name": ""}}, "named ''"),
        ({"function": {"name": "f g"}}, "named 'f g'"),
        ({"function": {"name": "f\n"}}, r"named 'f\\n'"),
        ({"function": {"name": "x" * 65}}, "1 to 64 letters"),
        ({"function": {"name": "f", "description": 1}}, "description of a tool is 1"),
        ({"function": {"name": "f", "parameters": []}}, "a JSON Schema was expected"),
        ({"function": {"name": "f", "parameters": {"type": "array"}}}, "have type 'array'"),
        ({"function": {"name": "f", "parameters": {"x": {1}}}}, "are not JSON"),
        ({"function": {"name": "f", "strict": "yes"}}, "true or false was expected"),
    ],
)
def test_what_is_not_a_tool_is_refused_in_one_short_line(tool, complaint):
    with pytest.raises(DataError, match=complaint) as refusal:
        Tool.from_dict(tool)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


def test_tools_are_told_apart_by_their_names(tiny):
    with pytest.raises(DataError, match="two tools are named now"):
        tools_parts([NOW, WEATHER, NOW], "v3")
    with pytest.raises(DataError, match="two tools are named now"):
        call_grammar([NOW, NOW], "v3", tiny)
    with pytest.raises(DataError, match="'later' is to be called, but there are only now; name"):
        call_grammar([NOW], "v3", tiny, required_name="later")
    with pytest.raises(DataError, match="only none"):
        call_grammar([], "v3", tiny)
