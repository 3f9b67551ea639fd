"""What one request has in a pass: the tokens it reads, the draws due to it, and what was drawn."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from abyssal.engine.answer import Answer
from abyssal.engine.request import TopLogprobs
from abyssal.engine.runner import Reading
from abyssal.engine.sampler import Row, sample
from abyssal.engine.scheduler import Entry


class Choice(NamedTuple):
    """A token drawn, and what the model itself thought of it."""

    token: int
    logprob: float | None
    top: TopLogprobs


class Turn(NamedTuple):
    """A request's part of a pass of T tokens."""

    entry: Entry
    answer: Answer
    first: int  # its first row of the pass
    rows: list[Row]  # draws to make: none while its prompt is being read

    @classmethod
    def of(cls, entry: Entry, answer: Answer, first: int) -> "Turn":
        """With the draws that are due."""
        is_due = entry.is_last and answer.request.params.max_tokens
        return cls(entry, answer, first, answer.rows() if is_due else [])

    @property
    def scored(self) -> range:
        """The rows of the pass whose scores are drawn from, one for each draw."""
        first = self.first + self.entry.count - 1 - len(self.entry.live.drafts)
        return range(first, first + len(self.rows))

    @property
    def wants_insight(self) -> bool:
        """Whether how its tokens come about is asked for."""
        return self.answer.request.params.insight

    def experts(self, met: Tensor) -> list[list[list[int]]]:
        """Of met (T, M, K), the experts (M, K) of each row that is drawn from."""
        found: list[list[list[int]]] = met[self.scored.start : self.scored.stop].tolist()
        return found

    @property
    def reading(self) -> Reading:
        """Its tokens, and the drafts behind them."""
        live, start, count = self.entry.live, self.entry.start, self.entry.count
        tokens = live.tokens[start : start + count]
        return Reading(tokens + live.drafts[: count - len(tokens)], live.pages, start)


def draw(logits: Tensor, rows: Sequence[Row], vocab_size: int) -> list[Choice | Exception]:
    """What sample draws from logits (S, W); a row that fails has its error in its place."""
    try:
        drawn = sample(logits, rows, vocab_size)
    except Exception as problem:  # noqa: BLE001 - see engine.py
        if len(rows) == 1:
            return [problem]
        single = (draw(logits[i : i + 1], [row], vocab_size) for i, row in enumerate(rows))
        return [choice for (choice,) in single]
    return [Choice(*one) for one in zip(*drawn, strict=True)]
