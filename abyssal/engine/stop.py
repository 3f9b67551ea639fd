"""Tokens to text a reader may already see: whole characters, no stop text, thoughts apart.

A stop text may begin in one token and end in another, so text that could still become one is held
back until it is certain. Which stop text wins does not depend on how the text was cut into tokens:
it is the one complete first, the longest if several end together.
"""

from typing import NamedTuple

from abyssal.tokenizer.bpe import END_THINK, TextStream, Tokenizer


class StopStrings:
    """Text in, text out, up to the first of the stop texts."""

    def __init__(self, stops: tuple[str, ...]):
        self._stops = stops
        self._held = ""  # may be the beginning of a stop text

    def push(self, text: str) -> tuple[str, bool]:
        """The text now certain, and whether a stop text was met; after that, push no more."""
        if not self._stops:
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
    stopped: bool = False  # a stop text was met


class Writer:
    """The text of one answer, token by token."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], thinking: bool):
        self._stream = TextStream(tokenizer)
        self._stops = StopStrings(stop)
        self._end_think = tokenizer.control(END_THINK) if thinking else None
        self._thinking = thinking

    def push(self, token: int) -> Piece:
        """The text that became certain with this token; stop texts count in the answer only."""
        if self._thinking:
            if token != self._end_think:
                return Piece("", reasoning=self._stream.push(token))
            self._thinking = False
            return Piece("", reasoning=self._stream.flush())
        text, stopped = self._stops.push(self._stream.push(token))
        return Piece(text, stopped=stopped)

    def finish(self) -> Piece:
        """What is left when the answer ends without a stop text."""
        rest = self._stream.flush()
        if self._thinking:
            return Piece("", reasoning=rest)
        text, stopped = self._stops.push(rest)
        return Piece(text if stopped else text + self._stops.flush(), stopped=stopped)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning, not the whole, of stop."""
    longest = min(len(text), len(stop) - 1)
    return next((k for k in range(longest, 0, -1) if text.endswith(stop[:k])), 0)
