"""Calls are read as they were written, however the text is cut and however sloppy the writer."""

import re
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.tokenizer import control
from abyssal.tokenizer.calls import CallParser, CallPiece, Parsed, Part, calls_parts, join_calls
from abyssal.tokenizer.message import ToolCall

LAYOUTS = ["v3", "r1", "v3.1"]
BEGIN = Part(control.TOOL_CALL_BEGIN, True)
END = Part(control.TOOL_CALL_END, True)
SEP = Part(control.TOOL_SEP, True)
OUTPUT = Part(control.TOOL_OUTPUT_BEGIN, True)  # means nothing here

names = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True)
arguments = st.one_of(
    st.text(),
    st.text('{}"\\`\n json', max_size=12),
    st.sampled_from(["", "{}", "```", "\n```", "```json\n{}\n```", "\n", '{"a": "\\n```\\n"}']),
)
calls = st.lists(st.builds(ToolCall, names, arguments), min_size=1, max_size=3)
words = ["function", "f", "```json", "```", "`", "\n", " ", "{", '"x"', "}", "yz", "\r\n"]
sloppy = st.lists(
    st.sampled_from([BEGIN, END, SEP, SEP, OUTPUT, Part("function"), Part("f\n```json\n{")])
    | st.lists(st.sampled_from(words), max_size=6).map(lambda found: Part("".join(found))),
    max_size=12,
)


def pushed(parser: CallParser, part: Part) -> Parsed:
    return (parser.push_control if part.is_control else parser.push_text)(part.content)


def read(parts: list[Part], layout: str) -> tuple[tuple[ToolCall, ...], str]:
    """The calls in parts, and the text that is in none."""
    parser = CallParser(layout)
    found = [pushed(parser, part) for part in parts] + [parser.finish()]
    pieces = [piece for parsed in found for piece in parsed.calls]
    return join_calls(pieces), "".join(parsed.text for parsed in found)


def cut(parts: list[Part], sizes: list[int]) -> list[Part]:
    """The same parts, their texts in pieces of these sizes over and over."""
    pieces, at = [], 0
    for part in parts:
        rest = part.content
        while not part.is_control and len(rest) > sizes[at % len(sizes)]:
            size = sizes[at % len(sizes)]
            pieces.append(Part(rest[:size]))
            rest, at = rest[size:], at + 1
        pieces.append(Part(rest, part.is_control))
    return pieces


def fenced(body: str) -> list[Part]:
    return [BEGIN, Part("function"), SEP, Part(body), END]


cuts = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=150)
@given(calls=calls, sizes=cuts)
def test_what_is_written_is_read_under_every_cut(layout, calls, sizes):
    assert read(cut(calls_parts(calls, layout), sizes), layout) == (tuple(calls), "")


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=400)
@given(parts=sloppy, sizes=cuts)
def test_no_cut_changes_what_a_sloppy_writer_is_taken_to_mean(layout, parts, sizes):
    assert read(cut(parts, sizes), layout) == read(parts, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=400)
@given(parts=sloppy)
def test_nothing_but_space_and_fences_and_the_word_function_is_lost(layout, parts):
    calls, text = read(parts, layout)
    said = "".join(part.content for part in parts if not part.is_control)
    kept = "".join(call.name + call.arguments for call in calls) + text
    assert not Counter(kept) - Counter(said)
    assert set((Counter(said) - Counter(kept)).elements()) <= set("function```json \r\n")
    lost_f = said.count("f") - kept.count("f")  # each with the rest of its word
    assert lost_f == said.count("u") - kept.count("u") <= sum(part == SEP for part in parts)


def definition(body: str) -> ToolCall:
    """A whole fenced call at once: its name, and what is between the fences, if there are any."""
    name = re.match(r"[^\n`{]*", body).group()
    opening = r"[ \t\r\n]*(?:```(?:json)?[ \t\r]*\n?)?"
    rest = body[len(name) :]
    rest = rest[re.match(opening, rest).end() :]
    return ToolCall(name.strip(), re.sub(r"\n?```[ \t\r\n]*\Z", "", rest))


@settings(max_examples=400)
@given(body=st.lists(st.sampled_from(words), max_size=10).map("".join), sizes=cuts)
def test_fences_are_taken_off_where_they_are(body, sizes):
    body = "f" + body
    assert read(cut(fenced(body), sizes), "v3") == ((definition(body),), "")


@given(body=st.text('x{"`\n ', max_size=20), sizes=cuts)
def test_arguments_come_at_once_but_for_what_may_be_the_closing_fence(body, sizes):
    parser = CallParser("r1")
    for part in fenced("f\n```json\n{")[:-1]:
        pushed(parser, part)
    seen, said = "", ""
    for part in cut([Part(body)], sizes):
        seen += "".join(piece.arguments for piece in pushed(parser, part).calls)
        said += part.content
        assert said.startswith(seen)
        assert re.fullmatch(r"\n?`{0,2}|\n?```[ \n]*", said[len(seen) :])


@given(call=st.builds(ToolCall, names, st.text("x`", min_size=1)), sizes=cuts)
def test_the_arguments_of_v3_1_are_never_held_back(call, sizes):
    parser = CallParser("v3.1")
    for part in [BEGIN, Part(call.name), SEP]:
        first = pushed(parser, part).calls
    assert first == (CallPiece(0, call.name, ""),)
    for part in cut([Part(call.arguments)], sizes):
        assert pushed(parser, part).calls == (CallPiece(0, None, part.content),)


def test_only_the_first_piece_of_a_call_has_its_name():
    parser = CallParser("v3.1")
    parts = calls_parts([ToolCall("f", "{}"), ToolCall("g", "{}")], "v3.1")
    assert [piece for part in parts for piece in pushed(parser, part).calls] == [
        CallPiece(0, "f", ""),
        CallPiece(0, None, "{}"),
        CallPiece(1, "g", ""),
        CallPiece(1, None, "{}"),
    ]


@pytest.mark.parametrize(
    ("parts", "calls", "text"),
    [
        (fenced("f\n{}"), [("f", "{}")], ""),
        (fenced("f{}"), [("f", "{}")], ""),
        (fenced("f\n```\n{}```\n"), [("f", "{}")], ""),
        (fenced("f\n```json\n{"), [("f", "{")], ""),
        (fenced("f"), [("f", "")], ""),
        (fenced("\n```json\n{}\n```"), [], "\n```json\n{}\n```"),  # without a name
        ([BEGIN, Part("f"), SEP, Part("{}"), END], [("f", "{}")], ""),  # as in V3.1
        ([*fenced("f{}")[:-1], *fenced("g{}")], [("f", "{}"), ("g", "{}")], ""),  # no end
        ([*fenced("f{}"), Part("\n"), *fenced("g{}")], [("f", "{}"), ("g", "{}")], ""),
        ([*fenced("f{}"), Part(" then "), *fenced("g{}")], [("f", "{}"), ("g", "{}")], " then "),
        ([BEGIN, Part("f()"), END], [], "f()"),
        ([Part("function"), SEP, Part("f{}"), END], [("f", "{}")], ""),  # no begin
        (fenced("f\n```json\n{}\n```")[:-1], [("f", "{}")], ""),
        ([*fenced("f{")[:-1], SEP, Part("}"), END], [("f", "{}")], ""),  # a mark too many
    ],
)
def test_a_sloppy_call_is_read_for_what_it_means(parts, calls, text):
    assert read(parts, "v3") == (tuple(ToolCall(*call) for call in calls), text)


def test_much_space_that_may_follow_a_fence_is_not_read_again_and_again():
    parser = CallParser("v3")
    for part in fenced("f\n```json\n{}\n```")[:-1]:
        pushed(parser, part)
    started_s = time.process_time()
    for _ in range(30_000):  # 3 MB, but 45 GB if all of it were looked at each time
        assert parser.push_text(" " * 100) == Parsed()
    assert parser.push_text("x").calls[0].arguments == "\n```" + " " * 3_000_000 + "x"
    assert time.process_time() - started_s < 2
