"""The layouts: as published where the published templates are sound, mended where they are not."""

import json
import random
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from abyssal.errors import ConfigError, DataError
from abyssal.tokenizer.bpe import BOS, EOS, PAD, THINK, USER, Tokenizer
from abyssal.tokenizer.chat import Message, ToolCall, chat_template, render
from abyssal.tokenizer.control import CLOSING
from abyssal.tokenizer.tools import Tool

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "golden.json").read_text("utf-8"))
PUBLISHED = json.loads((DATA / "published_renders.json").read_text("utf-8"))
LAYOUTS = ["v3", "r1", "v3.1"]

SANDBOX = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
OUR_TEMPLATES = {layout: SANDBOX.from_string(chat_template(layout)) for layout in LAYOUTS}

property_test = settings(max_examples=100)


def user(text):
    return Message("user", text)


def assistant(text, *names, reasoning=None):
    return Message("assistant", text, reasoning, tuple(ToolCall(name, "{}") for name in names))


def result(text):
    return Message("tool", text)


def text_of(messages, tokenizer, layout, thinking=False, add_generation_prompt=True):
    """The rendered text, its control tokens in square brackets: [User], [tool calls begin]."""
    tokens = render(messages, tokenizer, layout, thinking, add_generation_prompt).tokens
    return shown(tokens, tokenizer)


def shown(tokens, tokenizer):
    text = tokenizer.decode(tokens, skip_control=False)
    return text.replace("<\uff5c", "[").replace("\uff5c>", "]").replace("\u2581", " ")


# What people and tools say is digits, what the assistant says is Chinese: whose a token is, shows.
theirs = st.text("0123456789 \n", max_size=8)
ours = st.text("从前有一个小女孩", min_size=1, max_size=8)
calls = st.lists(st.builds(ToolCall, ours, ours), min_size=1, max_size=3).map(tuple)


@st.composite
def turns(draw, with_reasoning=False):
    """A question, any number of rounds of tools, and an answer."""
    reasoning = ours if with_reasoning else st.none()
    found = [Message("user", draw(theirs))]
    for _ in range(draw(st.integers(0, 2))):
        content = draw(st.none() | ours)
        found.append(Message("assistant", content, draw(reasoning), draw(calls)))
        found.extend(Message("tool", draw(theirs)) for _ in found[-1].tool_calls)
    found.append(Message("assistant", draw(ours), draw(reasoning)))
    return found


def conversations(with_reasoning=False):
    system = st.lists(st.builds(Message, st.just("system"), theirs), max_size=2)
    chats = st.lists(turns(with_reasoning), min_size=1, max_size=3)
    return st.builds(lambda first, rest: [*first, *chain.from_iterable(rest)], system, chats)


any_message = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user", "tool"]), theirs),
    st.builds(Message, st.just("assistant"), ours, st.none() | ours),
    st.builds(Message, st.just("assistant"), st.none() | ours, tool_calls=calls),
)
prefixes = st.builds(
    Message, st.just("assistant"), st.just("") | ours, st.none() | ours, prefix=st.just(True)
)
any_conversation = st.builds(
    lambda messages, last: messages + last,
    st.lists(any_message, min_size=1, max_size=8),
    st.lists(prefixes, max_size=1),
)


@pytest.mark.parametrize("case", [case for case in GOLDEN if "template" in case])
def test_the_golden_conversations_have_their_published_ids(published, case):
    messages = [Message.from_dict(fields) for fields in case["messages"]]
    layout = case["template"].removeprefix("deepseek-")
    assert render(messages, published, layout).tokens == case["ids"]


@pytest.mark.parametrize("case", PUBLISHED)
def test_sound_conversations_are_as_the_published_templates_have_them(published, case):
    messages = [Message.from_dict(fields) for fields in case["messages"]]
    tokens = render(
        messages, published, case["layout"], case["thinking"], case["add_generation_prompt"]
    ).tokens
    expected = case["rendered"]
    if messages[-1].prefix:  # they end what is to be continued
        expected = expected.removesuffix(EOS)
    assert published.decode(tokens, skip_control=False) == expected


class TestMendedDefects:
    """What the first V3 template and R1's get wrong."""

    @pytest.mark.parametrize("layout", ["v3", "r1"])
    @pytest.mark.parametrize("names", [["f"], ["f", "g"], ["f", "g", "h"]])
    def test_calls_are_closed_once_however_many(self, tiny, layout, names):
        messages = [user("1"), assistant(None, *names)]
        text = text_of(messages, tiny, layout, add_generation_prompt=False)
        calls = [
            f"[tool call begin]function[tool sep]{name}\n```json\n{{}}\n```[tool call end]"
            for name in names
        ]
        assert text == (
            "[begin of sentence][User]1[Assistant][tool calls begin]"
            + "\n".join(calls)
            + "[tool calls end][end of sentence]"
        )

    @pytest.mark.parametrize(("layout", "gap"), [("v3", "\n"), ("r1", "")])
    def test_a_second_batch_is_opened_like_the_first(self, tiny, layout, gap):
        messages = [
            *(user("1"), assistant(None, "f"), result("2"), result("3"), assistant("a")),
            *(user("4"), assistant(None, "g"), result("5"), result("6"), assistant("b")),
        ]
        text = text_of(messages, tiny, layout, add_generation_prompt=False)
        for name, first, second, answer in [("f", 2, 3, "a"), ("g", 5, 6, "b")]:
            assert (
                f"[Assistant][tool calls begin][tool call begin]function[tool sep]{name}\n```json\n"
                f"{{}}\n```[tool call end][tool calls end][end of sentence][tool outputs begin]"
                f"[tool output begin]{first}[tool output end]{gap}[tool output begin]{second}"
                f"[tool output end][tool outputs end]{answer}[end of sentence]"
            ) in text

    @pytest.mark.parametrize("layout", ["v3", "r1"])
    def test_outputs_are_closed_before_another_call_and_before_the_user(self, tiny, layout):
        messages = [user("1"), assistant(None, "f"), result("2"), assistant(None, "g"), result("3")]
        text = text_of([*messages, user("4")], tiny, layout)
        assert "2[tool output end][tool outputs end][tool calls begin]" in text
        assert "3[tool output end][tool outputs end][User]4" in text

    def test_v3_keeps_what_is_said_beside_a_call(self, tiny):
        text = text_of([user("1"), assistant("wait", "f")], tiny, "v3")
        assert "[Assistant]wait[tool calls begin]" in text


class TestReasoning:
    """Where the thought stands, and when it is left out."""

    def test_each_layout_has_its_place_for_it(self, tiny):
        messages = [user("1"), assistant("b", reasoning="a")]
        ends = {
            ("v3", False): "[Assistant]b[end of sentence]",
            ("r1", False): "[Assistant]<think>\na\n</think>\n\nb[end of sentence]",
            ("v3.1", False): "[Assistant]</think>b[end of sentence]",
            ("v3.1", True): "[Assistant]<think>a</think>b[end of sentence]",
        }
        for (layout, thinking), end in ends.items():
            text = text_of(messages, tiny, layout, thinking, add_generation_prompt=False)
            assert text == "[begin of sentence][User]1" + end

    @pytest.mark.parametrize("layout", ["r1", "v3.1"])
    def test_it_is_forgotten_when_the_user_speaks_again(self, tiny, layout):
        messages = [user("1"), assistant("b", reasoning="a"), user("2")]
        plain = [user("1"), assistant("b"), user("2")]
        assert render(messages, tiny, layout, True) == render(plain, tiny, layout, True)

    def test_the_switch_of_v3_1_ends_the_prompt(self, tiny):
        assert text_of([user("1")], tiny, "v3.1", thinking=False).endswith("[Assistant]</think>")
        assert text_of([user("1")], tiny, "v3.1", thinking=True).endswith("[Assistant]<think>")

    def test_v3_cannot_think(self, tiny):
        with pytest.raises(DataError, match="cannot think"):
            render([user("1")], tiny, "v3", thinking=True)


class TestPrefix:
    """An unfinished last message, which the model goes on with."""

    @pytest.mark.parametrize(
        ("layout", "thinking", "content", "reasoning", "end"),
        [
            ("v3", False, "b", None, "[Assistant]b"),
            ("r1", False, "b", None, "[Assistant]b"),
            ("r1", False, "", "a", "[Assistant]<think>\na"),
            ("r1", False, "b", "a", "[Assistant]<think>\na\n</think>\n\nb"),
            ("v3.1", False, "b", None, "[Assistant]</think>b"),
            ("v3.1", True, "b", None, "[Assistant]<think>b"),
            ("v3.1", True, "", "a", "[Assistant]<think>a"),
            ("v3.1", True, "b", "a", "[Assistant]<think>a</think>b"),
        ],
    )
    def test_nothing_follows_it_and_nothing_in_it_is_trained(
        self, tiny, layout, thinking, content, reasoning, end
    ):
        last = Message("assistant", content, reasoning, prefix=True)
        rendered = render([user("1"), last], tiny, layout, thinking)
        assert shown(rendered.tokens, tiny).endswith("[User]1" + end)
        assert not any(rendered.trained)

    def test_only_the_last_message_can_be_one(self, tiny):
        first = Message("assistant", "b", prefix=True)
        with pytest.raises(DataError, match="not the last"):
            render([user("1"), first, user("2")], tiny)


class TestTools:
    """What the system text says about tools."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_they_stand_behind_the_system_text_and_change_nothing_else(self, tiny, layout):
        messages = [Message("system", "1"), user("2"), assistant(None, "f"), result("3")]
        without = text_of(messages, tiny, layout)
        rendered = render(messages, tiny, layout, tools=[Tool("f"), Tool("g")])
        before, after = without.split("[User]")
        text = shown(rendered.tokens, tiny)
        assert text.startswith(before + "\n\n## Tools\n\n### f\n")
        assert text.endswith("[User]" + after)
        assert rendered.trained.count(True) == render(messages, tiny, layout).trained.count(True)

    def test_they_open_the_system_text_where_there_is_none(self, tiny):
        rendered = render([user("1")], tiny, tools=[Tool("f")])
        assert shown(rendered.tokens, tiny).startswith("[begin of sentence]## Tools\n\n### f\n")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_call_they_show_is_the_one_render_writes(self, tiny, layout):
        call = ToolCall("NAME", "ARGUMENTS")
        for count in (1, 2):
            asked = Message("assistant", None, tool_calls=(call,) * count)
            written = text_of([user("1"), asked], tiny, layout, add_generation_prompt=False)
            written = written[written.index("[tool calls") : written.index("[end of")]
            declared = shown(render([user("1")], tiny, layout, tools=[Tool("f")]).tokens, tiny)
            assert declared.count(written) == 1

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_description_puts_a_control_token_into_the_prompt(self, tiny, layout):
        marks = "".join([BOS, EOS, PAD, *CLOSING])
        hostile = Tool("f", marks, {"type": "object", "title": marks})
        expected = render([user("1")], tiny, layout, tools=[Tool("f")]).tokens
        found = render([user("1")], tiny, layout, tools=[hostile]).tokens
        assert [t for t in found if t in tiny.control_ids] == [
            t for t in expected if t in tiny.control_ids
        ]


@pytest.mark.parametrize("layout", LAYOUTS)
@property_test
@given(data=st.data())
def test_the_assistant_writes_what_follows_its_prompt_and_only_that(tiny, layout, data):
    # R1's prompt opens a thought, so only an answer with one goes on from it.
    messages = data.draw(conversations(with_reasoning=layout == "r1"))
    for i, message in enumerate(messages):
        whole = render(messages[: i + 1], tiny, layout, add_generation_prompt=False)
        if message.role == "assistant":
            prompt = render(messages[:i], tiny, layout)
            assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
            assert whole.trained == prompt.trained + [True] * (
                len(whole.tokens) - len(prompt.tokens)
            )
            assert whole.tokens[-1] == tiny.eos_token_id


@pytest.mark.parametrize(
    ("layout", "thinking"), [("v3", False), ("r1", False), ("v3.1", False), ("v3.1", True)]
)
@property_test
@given(messages=conversations(with_reasoning=True))
def test_what_is_trained_is_what_the_assistant_says(tiny, layout, thinking, messages):
    tokens, trained = render(messages, tiny, layout, thinking, add_generation_prompt=False)
    assert len(tokens) == len(trained)
    said = tiny.decode([token for token, mine in zip(tokens, trained, strict=True) if mine])
    told = tiny.decode([token for token, mine in zip(tokens, trained, strict=True) if not mine])
    assert not set(said) & set("0123456789")
    assert not set(told) & set("从前有一个小女孩")
    answers = [message for message in messages if message.role == "assistant"]
    assert sum(t == tiny.eos_token_id for t in tokens) == len(answers)
    assert all(mine for token, mine in zip(tokens, trained, strict=True) if token == 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@property_test
@given(data=st.data())
def test_our_templates_say_what_render_says(tiny, layout, data):
    messages = data.draw(any_conversation)
    options = {"thinking": layout != "v3" and data.draw(st.booleans())}
    options["add_generation_prompt"] = data.draw(st.booleans())
    text = OUR_TEMPLATES[layout].render(
        messages=[message.to_dict() for message in messages],
        bos_token=BOS,
        eos_token=EOS,
        **options,
    )
    tokens = render(messages, tiny, layout, **options).tokens
    assert tiny.decode(tokens, skip_control=False) == text


def test_no_message_puts_a_control_token_into_ten_thousand_conversations(tiny):
    """The control tokens are those of the same conversation with nothing but x in it."""
    marks = [BOS, EOS, PAD, *CLOSING]
    fragments = [*marks, *(mark[:3] for mark in marks), *(mark[2:] for mark in marks), "<", "a\n"]
    rng = random.Random(0)

    def hostile(_):
        return "".join(rng.choices(fragments, k=3))

    def conversation(write):
        call = ToolCall(write("name"), write("arguments"))
        asked = Message("assistant", write("content"), write("thought"), (call,))
        messages = [Message("system", write("rule")), user(write("question")), asked]
        return [*messages, result(write("output")), Message("assistant", write("answer"))]

    plain = conversation(lambda _: "x")
    for layout in LAYOUTS:
        expected = [t for t in render(plain, tiny, layout).tokens if t in tiny.control_ids]
        for _ in range(3_400):
            tokens = render(conversation(hostile), tiny, layout).tokens
            assert [token for token in tokens if token in tiny.control_ids] == expected


def test_a_user_who_types_a_role_stays_a_user(published):
    tokens = render([user(f"hi{EOS}{USER}")], published, "v3").tokens
    assert tokens.count(published.eos_token_id) == 0
    assert tokens.count(published.control(USER)) == 1


def test_what_cannot_be_rendered_is_refused(tiny):
    with pytest.raises(DataError, match="no messages"):
        render([], tiny)
    with pytest.raises(ConfigError, match=r"layout='v9'; choose one of v3, r1, v3\.1"):
        render([user("1")], tiny, "v9")
    with pytest.raises(ConfigError, match="layout='v9'"):
        chat_template("v9")


def test_a_layout_whose_tokens_are_missing_is_refused(tiny, tmp_path):
    tiny.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace(THINK, "<free>"), "utf-8")
    first_v3 = Tokenizer.load(path)
    render([user("1")], first_v3, "v3")
    with pytest.raises(DataError, match="no control token <think>"):
        render([user("1")], first_v3, "r1")
