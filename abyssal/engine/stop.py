"""Tokens to what a reader may see: whole characters, no stop text, thoughts and calls apart.

A stop text may begin in one token and end in another, so text that could still become one is held
back until it is certain. Which stop text wins does not depend on how the text was cut into tokens:
it is the one complete first, the longest if several end together.
"""

from typing import Literal, NamedTuple

from abyssal.tokenizer import control
from abyssal.tokenizer.bpe import TextStream, Tokenizer
from abyssal.tokenizer.calls import CALL_BORDERS, CallParser, CallPiece, Parsed
from abyssal.tokenizer.template import Layout


class StopStrings:
    """Text in, text out, up to the first of the stop texts."""

    def __init__(self, stops: tuple[str, ...]):
        self._stops = stops
        self._held = ""  # may be the beginning of a stop text

    def push(self, text: str) -> tuple[str, bool]:
        """The text now certain, and whether a stop text was met; after that, push no more."""
        if not self._stops or not text:
            return text, False
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            certain, self._held = self._held[: min(found)[1]], ""
            return certain, True
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain, False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        rest, self._held = self._held, ""
        return rest


class Piece(NamedTuple):
    """What one token adds for the reader."""

    text: str
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    stopped: bool = False  # a stop text was met


class Writer:
    """The text, the thought and the tool calls of one answer, token by token.

    An answer that was not asked to think may still open a thought. Calls are recognized in the
    form of `layout`; with None their control tokens are left out like all others and what stands
    between them is text. Stop texts count in the answer's text only, as if it were in one piece.

    Raises:
        DataError: the answer opens inside a thought and the tokenizer has no </think>.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        thinking: bool,
        layout: Layout | None = None,
    ):
        if thinking:
            tokenizer.control(control.END_THINK)  # raises if the thought could never end
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer)
        self._stops = StopStrings(stop)
        self._parser = None if layout is None else CallParser(layout)
        self._part: Literal["answer", "thought", "calls"] = "thought" if thinking else "answer"

    def push(self, token: int) -> Piece:
        """What became certain with this token; after a stop text, push no more."""
        if token not in self._tokenizer.control_ids:
            return self._read(self._stream.push(token))
        name = self._tokenizer.decode([token], skip_control=False)
        part = self._part_after(name)
        if part is None:  # no border: bytes before and behind may be of one character
            return Piece("")
        before = self._read(self._stream.flush())
        self._part = part
        if self._parser is None or name in (control.THINK, control.END_THINK):
            return before
        return _join(before, self._answer(self._parser.push_control(name)))

    def finish(self) -> Piece:
        """What is left when the answer ends without a stop text."""
        piece = self._read(self._stream.flush())
        if self._parser is not None:
            piece = _join(piece, self._answer(self._parser.finish()))
        return piece._replace(text=piece.text + self._stops.flush())

    def _part_after(self, name: str) -> Literal["answer", "thought", "calls"] | None:
        """The part of the answer that a control token opens or divides; None if neither."""
        if self._part == "calls":
            if name == control.TOOL_CALLS_END:
                return "answer"
            return "calls" if name in CALL_BORDERS or name == control.TOOL_SEP else None
        if self._parser is not None and name in (control.TOOL_CALLS_BEGIN, control.TOOL_CALL_BEGIN):
            return "calls"
        if name == control.THINK and self._part == "answer":
            return "thought"
        return "answer" if name == control.END_THINK and self._part == "thought" else None

    def _read(self, text: str) -> Piece:
        if self._part == "thought":
            return Piece("", reasoning=text)
        if self._part == "calls" and self._parser is not None:
            return self._answer(self._parser.push_text(text))
        return self._answer(Parsed(text=text))

    def _answer(self, parsed: Parsed) -> Piece:
        text, stopped = self._stops.push(parsed.text)
        return Piece(text, calls=parsed.calls, stopped=stopped)


def _join(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.text + second.text,
        first.reasoning + second.reasoning,
        first.calls + second.calls,
        first.stopped or second.stopped,
    )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning, not the whole, of stop."""
    longest = min(len(text), len(stop) - 1)
    return next((k for k in range(longest, 0, -1) if text.endswith(stop[:k])), 0)
