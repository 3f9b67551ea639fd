"""How likely given continuations are, on the engine's own passes over a cache of its own.

    log p(continuation | context) = sum over its tokens of log softmax(head(hidden))[token]

Sequences of a group begin alike, the choices of one question say. What they share is read once:
its pages are shared, and only a page that goes on differently is copied. Passes are those of the
deterministic mode, so that a number does not depend, to the bit, on what is scored beside it.

    R rows whose scores are wanted    W vocab_size    M MoE layers    E n_routed_experts
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from abyssal.engine.engine import Engine
from abyssal.engine.native import NativeRunner
from abyssal.engine.pages import PAGE, pages_for
from abyssal.engine.runner import Reading, Runner, even_shares
from abyssal.engine.scoring import check

BATCH_TOKENS = 2048  # read between two rounds of scores
BATCH_PAGES = 512  # of the cache; more where a single group needs more


class Continuation(NamedTuple):
    """A sequence of which the tokens from `first` on are scored, all given those before them."""

    tokens: Sequence[int]
    first: int = 1


class Likelihood(NamedTuple):
    """What a model thinks of a continuation."""

    logprob: float  # natural logarithm, summed over its tokens
    tokens: int
    greedy: bool  # whether each of its tokens is the likeliest


class Scorer:
    """Scores continuations with the model of an engine; the engine's own cache stays untouched."""

    def __init__(self, engine: Engine):
        self._engine = engine.runner
        self._runner = self._with_pages(BATCH_PAGES)

    def score(self, groups: Sequence[Sequence[Continuation]]) -> list[list[Likelihood]]:
        """The likelihood of every continuation, in order.

        Raises:
            RequestError: a sequence is empty, too long for the model, or holds an unknown token.
        """
        config = self._engine.config
        plans = []
        for group in groups:
            for one in group:
                check(one.tokens, config)
            plans.append(_Plan.of(group))
        done: list[list[Likelihood]] = []
        with even_shares():
            for batch in _batches(plans):
                done += self._score(batch)
        return done

    @property
    def has_experts(self) -> bool:
        """Whether any layer routes."""
        return bool(len(self._runner.expert_load))

    @torch.inference_mode()
    def expert_load(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of these sequences by MoE layer and expert: (M, E) int64."""
        plans = [_Plan.of([Continuation([*tokens, 0])]) for tokens in sequences]  # all are read
        before = self._runner.expert_load.clone()
        with even_shares():
            for batch in _batches(plans):
                self._begin(batch)
                self._runner.read([plan.beginning() for plan in batch])
        return self._runner.expert_load - before

    @torch.inference_mode()
    def _score(self, batch: list["_Plan"]) -> list[list[Likelihood]]:
        """Beginnings, then what follows them, then the scores of all rows that are wanted."""
        copies = self._begin(batch)
        first = self._runner.read([plan.beginning() for plan in batch]).hidden
        self._runner.cache.copy(copies)
        endings = [reading for plan in batch for reading in plan.endings()]
        hidden = torch.cat([first, self._runner.read(endings).hidden]) if endings else first
        places, targets = _wanted(batch)
        picked, best = self._picked(hidden, places, targets)
        return _summed(batch, picked.tolist(), best.tolist())

    def _begin(self, batch: list["_Plan"]) -> list[tuple[int, int]]:
        """Pages for all sequences of a batch, and which of them are copied once they are read."""
        wanted = 1 + sum(plan.num_pages for plan in batch)
        if wanted > self._runner.cache.pool.shape[1]:
            loads = self._runner.expert_load
            self._runner = self._with_pages(wanted)
            self._runner.expert_load = loads
        pages = iter(range(1, wanted))
        return [copy for plan in batch for copy in plan.take(pages)]

    def _picked(
        self, hidden: Tensor, places: np.ndarray, targets: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of targets behind rows of hidden, and whether each is the likeliest."""
        rows, where = np.unique(places, return_inverse=True)
        picked, best = torch.empty(len(places)), torch.empty(len(places), dtype=torch.bool)
        row, target = torch.from_numpy(where), torch.from_numpy(targets)
        begin = 0
        for logits in self._runner.logit_chunks(hidden[torch.from_numpy(rows)]):
            logprobs = logits.log_softmax(-1)
            here = (row >= begin) & (row < begin + len(logits))
            chosen = logprobs[row[here] - begin, target[here]]
            picked[here] = chosen
            best[here] = chosen == logprobs.amax(-1)[row[here] - begin]
            begin += len(logits)
        return picked, best

    def _with_pages(self, count: int) -> Runner | NativeRunner:
        return self._engine.beside(self._engine.cache.beside(count, fixed=True))


class _Plan:
    """A group on its way: what its sequences share, and the pages they lie in."""

    def __init__(self, group: Sequence[Continuation], shared: int):
        self.group, self.shared = group, shared
        self.pages: list[list[int]] = []  # of the beginning, then of each that goes on
        # The last token of a sequence is only scored, and never read.
        self.ends = [len(one.tokens) - 1 for one in group]
        self.num_tokens = shared + sum(end - shared for end in self.ends)
        full = shared // PAGE
        own = sum(pages_for(end) - full for end in self.ends if end > shared)
        self.num_pages = pages_for(shared) + own

    @classmethod
    def of(cls, group: Sequence[Continuation]) -> "_Plan":
        """What begins alike, but never all of a sequence: something is left to be scored."""
        tokens = [one.tokens for one in group]
        least = min(map(len, tokens)) - 1
        columns = zip(*(row[:least] for row in tokens), strict=True)
        shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), least)
        return cls(group, shared)

    def take(self, pages: Iterator[int]) -> list[tuple[int, int]]:
        """Take pages; the copies to make once the beginning is read: (from, to) each."""
        full = self.shared // PAGE
        beginning = [next(pages) for _ in range(pages_for(self.shared))]
        self.pages = [beginning]
        copies: list[tuple[int, int]] = []
        for end in self.ends:
            own = [next(pages) for _ in range(pages_for(end) - full)] if end > self.shared else []
            if own and self.shared % PAGE:
                copies.append((beginning[full], own[0]))
            self.pages.append(beginning[:full] + own)
        return copies

    def beginning(self) -> Reading:
        """What all sequences share."""
        return Reading(list(self.group[0].tokens[: self.shared]), self.pages[0], 0)

    def endings(self) -> list[Reading]:
        """What those that go on have of their own."""
        return [
            Reading(list(one.tokens[self.shared : end]), pages, self.shared)
            for one, end, pages in zip(self.group, self.ends, self.pages[1:], strict=True)
            if end > self.shared
        ]


def _batches(plans: Sequence[_Plan]) -> Iterator[list[_Plan]]:
    """Groups in order, as many as fit a round."""
    batch: list[_Plan] = []
    tokens = pages = 0
    for plan in plans:
        tokens, pages = tokens + plan.num_tokens, pages + plan.num_pages
        if batch and (tokens > BATCH_TOKENS or pages >= BATCH_PAGES):
            yield batch
            batch, tokens, pages = [], plan.num_tokens, plan.num_pages
        batch.append(plan)
    if batch:
        yield batch


def _wanted(batch: list[_Plan]) -> tuple[np.ndarray, np.ndarray]:
    """For each token to be scored the row of hidden before it, and the token itself.

    Rows are those of all beginnings, then those of all endings.
    """
    places: list[np.ndarray] = []
    begin = 0
    ending = sum(plan.shared for plan in batch)
    for plan in batch:
        for one, end in zip(plan.group, plan.ends, strict=True):
            rows = np.arange(one.first - 1, end)
            places.append(np.where(rows < plan.shared, begin + rows, ending + rows - plan.shared))
            ending += end - plan.shared
        begin += plan.shared
    targets = [np.asarray(one.tokens[one.first :]) for plan in batch for one in plan.group]
    return np.concatenate(places).astype(np.int64), np.concatenate(targets).astype(np.int64)


def _summed(batch: list[_Plan], picked: list[float], best: list[bool]) -> list[list[Likelihood]]:
    done: list[list[Likelihood]] = []
    begin = 0
    for plan in batch:
        done.append([])
        for one in plan.group:
            end = begin + len(one.tokens) - one.first
            total, greedy = math.fsum(picked[begin:end]), all(best[begin:end])
            done[-1].append(Likelihood(total, end - begin, greedy))
            begin = end
    return done
