"""Speculative decoding with the MTP module: guess the next tokens cheaply, verify them together.

The module joins the last hidden state with the token just drawn and predicts the one after it
(DeepSeek-V3, arXiv 2412.19437, sections 2.2 and 5.4.3). Its own output goes in again to guess
further. The guesses ride in the next pass behind that token, and the first wrong one ends what is
taken.

A guess is right if it is the token that plain decoding draws at that place. Every draw takes its
random numbers from (seed, place), in the draft as in the verification, so drafts change how many
passes an answer takes and never what it says: greedy or sampled, it is the same answer. The noise
the two draws share also makes them agree often, at least (1 - TV) / (1 + TV) of the time where TV
is the distance of the two distributions.

The module's latents are one more layer of the cache. They are written for every accepted place, the
prompt included; those of rejected guesses are overwritten by the next pass.

    T tokens of a pass    S answers    D hidden_size
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from abyssal.engine.answer import Answer
from abyssal.engine.native import NativeRunner
from abyssal.engine.pages import PAGE
from abyssal.engine.runner import Reading, Runner
from abyssal.engine.sampler import Row
from abyssal.engine.scheduler import Entry

logger = logging.getLogger(__name__)

ENOUGH = 500  # first guesses before their worth is judged
POOR = 0.05  # a share of right first guesses that only costs time

Draw = Callable[[Tensor, Sequence[Row]], list[int | None]]  # None: no token can be drawn


class Drafter:
    """Fills the module's layer of the cache and proposes `depth` tokens for each answer."""

    def __init__(self, runner: Runner | NativeRunner, depth: int):
        self.runner, self.depth = runner, depth
        self.drafted = [0] * depth  # guesses verified, by how far ahead they were
        self.accepted = [0] * depth  # ... that were right
        self._has_warned = False

    def judge(self, num_drafts: int, num_accepted: int) -> None:
        """Count a verified draft."""
        for i in range(num_drafts):
            self.drafted[i] += 1
            self.accepted[i] += i < num_accepted
        if self.drafted[0] < ENOUGH or self._has_warned:
            return
        share = self.accepted[0] / self.drafted[0]
        if share < POOR:
            self._has_warned = True
            logger.warning(
                "only %.1f%% of %d drafted tokens were right, so drafting makes this model slower; "
                "its MTP module seems untrained: run with draft=0",
                100 * share,
                self.drafted[0],
            )

    def propose(
        self,
        entries: Sequence[tuple[Entry, Answer]],
        firsts: Sequence[int],
        hidden: Tensor,
        draw: Draw,
    ) -> None:
        """Draft for entries just committed, whose rows of hidden (T, D) begin at `firsts`."""
        readings: list[Reading] = []
        rows: list[int] = []
        for (entry, answer), first in zip(entries, firsts, strict=True):
            live = answer.live
            # Rows of rejected drafts lie beyond num_computed.
            tokens = live.tokens[entry.start + 1 : live.num_computed + 1]
            readings.append(Reading(tokens, live.pages, entry.start))
            rows += range(first, first + len(tokens))
        ahead = self.runner.ahead(readings, hidden[rows])
        ends = torch.tensor([len(reading.tokens) for reading in readings]).cumsum(0) - 1
        asked = [
            (answer, int(end))
            for (entry, answer), end in zip(entries, ends, strict=True)
            if entry.is_last and len(answer.live.tokens) + 1 < answer.live.limit
        ]
        answers = [answer for answer, _ in asked]
        self._chain(answers, ahead[[end for _, end in asked]], draw)

    def _chain(self, answers: list[Answer], hidden: Tensor, draw: Draw) -> None:
        """Guess further and further from hidden (S, D), one row an answer."""
        for depth in range(self.depth):
            tried = [answer.row_ahead(answer.live.drafts) for answer in answers]
            able = [i for i, row in enumerate(tried) if row is not None]
            if not able:
                return
            rows = [row for row in tried if row is not None]
            tokens = draw(self.runner.logits(hidden[able]), rows)
            going = []
            for i, token in zip(able, tokens, strict=True):
                if token is not None:
                    answers[i].live.drafts.append(token)
                    if _may_go_on(answers[i]):
                        going.append(i)
            if depth + 1 == self.depth or not going:
                return
            answers = [answers[i] for i in going]
            readings = [_last_draft(answer) for answer in answers]
            hidden = self.runner.ahead(readings, hidden[going])


def _last_draft(answer: Answer) -> Reading:
    """The latest guess, behind the place of the token before it."""
    live = answer.live
    return Reading(live.drafts[-1:], live.pages, len(live.tokens) + len(live.drafts) - 2)


def _may_go_on(answer: Answer) -> bool:
    """Whether another guess may be wanted and its latent has a page already."""
    live = answer.live
    length = len(live.tokens) + len(live.drafts)
    has_page = length - 2 < len(live.pages) * PAGE
    return has_page and length + 1 < live.limit and live.drafts[-1] not in answer.ends
