"""Tool calls inside an answer: how they are written, and recognized while they are.

    function<sep>NAME, a line break, ```json, ARGUMENTS, ```    V3 and R1, between begin and end
    NAME<sep>ARGUMENTS                                          V3.1

Only control tokens begin and end a call, so arguments may hold any text. Models slip, and nothing
they write is lost: a missing fence or end is done without; where the word before <sep> is not
"function", it is the name; text that belongs to no call, be it between calls or in one without a
name, is the answer's. Of all that, only space between calls and around fences is dropped.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from abyssal.tokenizer.control import (
    TOOL_CALL_BEGIN,
    TOOL_CALL_END,
    TOOL_CALLS_BEGIN,
    TOOL_CALLS_END,
    TOOL_SEP,
)
from abyssal.tokenizer.message import ToolCall
from abyssal.tokenizer.template import Layout

CALL_BORDERS = frozenset({TOOL_CALLS_BEGIN, TOOL_CALL_BEGIN, TOOL_CALL_END, TOOL_CALLS_END})

SEPARATOR: dict[Layout, str] = {"v3": "\n", "r1": "\n", "v3.1": ""}  # between two calls

_SPACE = " \t\r\n"
_OPENING = "```json"
_CLOSING = re.compile(r"\n?```[ \t\r\n]*\Z")
_MAY_CLOSE = re.compile(r"(?:\n?```[ \t\r\n]*|\n?`{1,2}|\n)\Z")
_NAME_ENDS = re.compile(r"[\n`{]")


class CallPiece(NamedTuple):
    """A piece of one tool call; the first piece of a call has its name."""

    index: int  # type: ignore[assignment]  # which call of the answer, from 0
    name: str | None  # in the first piece of a call
    arguments: str  # the next characters of its JSON text


def join_calls(pieces: Iterable[CallPiece]) -> tuple[ToolCall, ...]:
    """The calls whose pieces these are."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in pieces:
        if piece.name is not None:
            names[piece.index] = piece.name
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    return tuple(ToolCall(names[i], arguments[i]) for i in sorted(names))


class Part(NamedTuple):
    """Text, in which nothing is a control token, or the name of one."""

    content: str
    is_control: bool = False


def call_parts(call: ToolCall, layout: Layout) -> list[Part]:
    """One call as the assistant writes it."""
    head, body = call.name, call.arguments
    if layout != "v3.1":
        head, body = "function", f"{call.name}\n```json\n{call.arguments}\n```"
    begin, sep, end = (Part(name, True) for name in (TOOL_CALL_BEGIN, TOOL_SEP, TOOL_CALL_END))
    return [begin, Part(head), sep, Part(body), end]


def calls_parts(calls: Sequence[ToolCall], layout: Layout) -> list[Part]:
    """All calls of one answer, from <tool calls begin> to <tool calls end>."""
    parts = [Part(TOOL_CALLS_BEGIN, True)]
    for i, call in enumerate(calls):
        if i:
            parts.append(Part(SEPARATOR[layout]))
        parts.extend(call_parts(call, layout))
    return [*parts, Part(TOOL_CALLS_END, True)]


class Parsed(NamedTuple):
    """What became certain."""

    calls: tuple[CallPiece, ...] = ()
    text: str = ""  # belongs to no call


class CallParser:
    """The calls of one answer, from the text and the control tokens after <tool calls begin>.

    However the text is cut, the joined calls are the same, and the work grows with its length.
    """

    def __init__(self, layout: Layout):
        self._wraps = layout != "v3.1"
        self._count = 0  # calls begun
        self._part: Literal["head", "name", "fence", "line", "fenced", "plain"] = "head"
        self._held: list[str] = []  # text of this part whose meaning is not certain yet

    def push_control(self, name: str) -> Parsed:
        """Go on by the control token of that name; those without a meaning here are skipped."""
        if name in CALL_BORDERS:
            return self.finish()
        if name != TOOL_SEP or self._part != "head":
            return Parsed()
        word = self._take()
        if self._wraps and word.strip() == "function":
            self._part = "name"
            return Parsed()
        return Parsed(self._begin(word, "plain"))

    def push_text(self, text: str) -> Parsed:
        """Go on by text."""
        if self._part == "head":
            self._held.append(text)
            return Parsed()
        begun: tuple[CallPiece, ...] = ()
        if self._part == "name":
            begun, text = self._read_name(text)
        if self._part == "fence":
            text = self._skip_fence(text)
        if self._part == "line":
            text = self._skip_line_end(text)
        if self._part == "fenced":
            text = self._hold_closing(text)
        return Parsed(begun + self._arguments(text))

    def finish(self) -> Parsed:
        """What was held back, when the call ends; the parser is then ready for another."""
        part, self._part = self._part, "head"
        held = self._take()
        if part == "head":
            return Parsed(text=held if held.strip(_SPACE) else "")
        if part == "name":
            begun = self._begin(held, "fence")
            self._part = "head"
            return Parsed(begun)
        if part == "fence":
            return Parsed(self._arguments(_without_fence(held)))
        return Parsed(self._arguments(_CLOSING.sub("", held) if part == "fenced" else held))

    def _take(self) -> str:
        held, self._held = "".join(self._held), []
        return held

    def _begin(self, name: str, part: Literal["fence", "plain"]) -> tuple[CallPiece, ...]:
        """The first piece of a call; without a name there is none, and what follows is text."""
        name = name.strip()
        self._part = part if name else "head"
        if not name:
            return ()
        self._count += 1
        return (CallPiece(self._count - 1, name, ""),)

    def _arguments(self, text: str) -> tuple[CallPiece, ...]:
        return (CallPiece(self._count - 1, None, text),) if text else ()

    def _read_name(self, text: str) -> tuple[tuple[CallPiece, ...], str]:
        """The first piece, if the name is complete, and the text behind it."""
        end = _NAME_ENDS.search(text)
        self._held.append(text)
        if end is None:
            return (), ""
        text, behind = self._take(), text[end.start() :]
        begun = self._begin(text[: len(text) - len(behind)], "fence")
        if begun:
            return begun, behind
        self._held.append(text)
        return (), ""

    def _skip_fence(self, text: str) -> str:
        """The text behind the opening fence, if there is one."""
        text = (self._take() + text).lstrip(_SPACE)
        if _OPENING.startswith(text):  # whole or in part, and perhaps not a fence after all
            self._held = [text]
            return ""
        self._part = "line" if text.startswith("```") else "fenced"
        return _without_fence(text)

    def _skip_line_end(self, text: str) -> str:
        text = text.lstrip(" \t\r")
        if text:
            self._part = "fenced"
        return text.removeprefix("\n")

    def _hold_closing(self, text: str) -> str:
        """The text that is certainly not the closing fence; the rest is held."""
        is_closing = bool(self._held) and "```" in self._held[0]
        self._held.append(text)
        if is_closing and not text.strip(_SPACE):
            return ""  # so that much space is not read again and again
        text = self._take()
        kept = _MAY_CLOSE.search(text)
        if kept is None:
            return text
        self._held = [kept.group()]
        return text[: kept.start()]


def _without_fence(text: str) -> str:
    return text.removeprefix("```").removeprefix("json") if text.startswith("```") else text
