"""One answer on its way: its text so far, its grammar, and what its next token is drawn with."""

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from abyssal.engine.bad_words import BadWords
from abyssal.engine.live import Live
from abyssal.engine.request import Delta, FinishReason, Insight, TopLogprobs
from abyssal.engine.sampler import Row
from abyssal.engine.stop import Piece, Writer
from abyssal.tokenizer.bpe import Tokenizer

logger = logging.getLogger(__name__)


class Answer:
    """What the engine keeps of a request beside its place in the schedule."""

    def __init__(self, live: Live, tokenizer: Tokenizer):
        self.live, self.request = live, live.request
        params = self.request.params
        self.writer = Writer(
            tokenizer, tuple(params.stop), self.request.thinking, self.request.layout
        )
        self.matcher = None if self.request.matcher is None else self.request.matcher.fork()
        self.bad_words = BadWords(tokenizer, params.bad_words) if params.bad_words else None
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        eos = () if params.ignore_eos else (tokenizer.eos_token_id,)
        self.ends = frozenset((*eos, *params.stop_token_ids))
        self.prompt_logprobs: list[tuple[float, TopLogprobs]] = []
        self._num_drafted = self._num_accepted = 0  # noted where insight is asked for
        self._looks_back = bool(
            params.presence_penalty
            or params.frequency_penalty
            or params.repetition_penalty != 1.0
            or self.bad_words
        )
        self._is_new = True  # nothing has been said yet

    def row(self, drafts: Sequence[int]) -> Row:
        """What the token after everything written and these drafts is drawn with."""
        live = self.live
        prompt: list[int] = []
        written: list[int] = []
        if self._looks_back:
            prompt, written = live.tokens[: live.num_prompt], [*live.written, *drafts]
        return Row(
            params=self.request.params,
            seed=self.seed,
            sample=self.request.sample,
            position=len(live.tokens) - live.num_prompt + len(drafts),
            prompt=prompt,
            written=written,
            allowed=self._allowed(drafts),
            banned=self.bad_words.banned(written) if self.bad_words else (),
        )

    def row_ahead(self, drafts: Sequence[int]) -> Row | None:
        """The same for a guess; None if it cannot be drawn, which is told when its turn comes."""
        try:
            return self.row(drafts)
        except Exception as problem:  # noqa: BLE001 - a fault in what may never be needed
            logger.debug("no row behind %d drafts: %s", len(drafts), problem)
            return None

    def rows(self) -> list[Row]:
        """One row for the next token, and one behind each draft that may be followed by another."""
        drafts = self.live.drafts
        count = next((i for i, token in enumerate(drafts) if token in self.ends), len(drafts))
        rows = [self.row(())]
        for i in range(1, count + 1):
            row = self.row_ahead(drafts[:i])
            if row is None:
                break
            rows.append(row)
        return rows

    def _allowed(self, drafts: Sequence[int]) -> np.ndarray | None:
        """What the grammar allows behind these drafts, as bits; None without one."""
        matcher, taken = self.matcher, 0
        if matcher is None:
            return None
        try:
            for token in drafts:
                matcher.accept(token)
                taken += 1
            return matcher.allowed()
        finally:
            matcher.rollback(taken)

    def take(self, token: int, logprob: float | None, top: TopLogprobs, is_limit: bool) -> Delta:
        """The token drawn next, as its reader sees it; is_limit if no other may follow."""
        if self.matcher is not None and token not in self.ends:
            self.matcher.accept(token)
        piece = self.writer.push(token)
        reason: FinishReason | None = "stop" if piece.stopped else None
        if reason is None and (token in self.ends or is_limit):
            rest = self.writer.finish()
            reason = "stop" if token in self.ends or rest.stopped else "length"
            piece = _joined(piece, rest)
        return self._delta(token, piece, reason, logprob=logprob, top=top)

    def end(self, reason: FinishReason, error: str | None = None) -> Delta:
        """The end of an answer that no further token brings about."""
        return self._delta(None, self.writer.finish(), reason, error=error)

    def explained(
        self, deltas: Sequence[Delta], experts: Iterable[list[list[int]]], drafted: int, right: int
    ) -> list[Delta]:
        """The deltas of a pass with how their tokens came about.

        `experts` (M, K) are of the row that each was drawn from; of `drafted` guesses that the pass
        has verified the first `right` are the first tokens of these.
        """
        self._num_drafted += drafted
        self._num_accepted += right
        counts = self._num_drafted, self._num_accepted
        return [
            replace(delta, insight=Insight(tuple(map(tuple, layers)), i < right, *counts))
            for i, (delta, layers) in enumerate(zip(deltas, experts, strict=False))
        ]

    def _delta(
        self,
        token: int | None,
        piece: Piece,
        reason: FinishReason | None,
        *,
        logprob: float | None = None,
        top: TopLogprobs = (),
        error: str | None = None,
    ) -> Delta:
        told = self._is_new and self.request.params.prompt_logprobs is not None
        self._is_new = False
        return Delta(
            self.request.id,
            token,
            piece.text,
            logprob,
            reason,
            piece.reasoning,
            top,
            piece.calls,
            self.live.num_cached,
            tuple(self.prompt_logprobs) if told else None,
            error,
        )


def _joined(piece: Piece, rest: Piece) -> Piece:
    return Piece(
        piece.text + rest.text,
        piece.reasoning + rest.reasoning,
        (*piece.calls, *rest.calls),
        piece.stopped or rest.stopped,
    )
