"""What the scheduler has planned, as passes of the model over the paged cache.

A pass takes the tokens of many sequences end to end, whatever their numbers. A `tile` makes every
pass exactly that many tokens long, with padding that nobody reads: then all matrix products have
one shape, and the bits of a row depend on its own sequence alone, not on who else is there, on how
a prompt was cut or on what a cache already held. That is the deterministic mode.

    T tokens of a pass    S rows of the head    D hidden_size    W vocab_size    M MoE layers
    E n_routed_experts    K num_experts_per_tok
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from abyssal.batch import Batch
from abyssal.engine.cache import Extent, PagedCache

if TYPE_CHECKING:  # native passes need no model
    from abyssal.model.moe import Routing
    from abyssal.model.transformer import DeepSeekV3

TILE = 32  # tokens of each pass in the deterministic mode; experts' runs are padded to as many
HEAD_NUMBERS = 2**24  # logits in memory together: 64 MiB of float32

_PADDING = Extent((0,), 0, 1)  # a token of the scratch page


class Reading(NamedTuple):
    """Tokens of one sequence that a pass reads, the first of them at position start."""

    tokens: Sequence[int]
    pages: Sequence[int]
    start: int


class Passed(NamedTuple):
    """What comes of tokens that were read."""

    hidden: Tensor  # (T, D), normed
    logits: Tensor  # (S, W) float32 on the CPU, behind each row that was asked for
    experts: Tensor | None = None  # (T, M, K) on the CPU, best first, of who asked for them


class Runner:
    """A model and its cache; everything here is tensors, and nobody here knows of requests."""

    def __init__(self, model: "DeepSeekV3", cache: PagedCache, tile: int | None = None):
        self.model, self.cache, self.tile = model, cache, tile
        self._device = model.lm_head.weight.device
        self.config = config = model.config
        num_moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
        self.expert_load = torch.zeros(num_moe, config.n_routed_experts, dtype=torch.int64)

    def beside(self, cache: PagedCache) -> "Runner":
        """The same model over another cache; `cache.fixed` says how it is read."""
        return Runner(self.model, cache, TILE if cache.fixed else None)

    def refresh(self, model: "DeepSeekV3") -> None:
        """Take over the weights of a model; of the one that runs here, they are here already."""
        self.model = model

    def read(
        self, readings: Sequence[Reading], scored: Sequence[int] = (), *, routed: bool = False
    ) -> Passed:
        """Hidden states of these tokens, in their order, and what follows those in rows `scored`.

        Their latents are cached. With `routed`, also the experts that each of them met.
        """
        passes, routes = [], []
        for batch, extents, real in self._passes(readings):
            self.cache.begin(extents)
            output = self.model(batch, self.cache)
            self._count(output.routings, real)
            passes.append(output.hidden[:real])
            if routed:
                routes.append(self._experts(output.routings, real))
        hidden = passes[0] if len(passes) == 1 else torch.cat(passes)
        rows = hidden[list(scored)]
        no_logits = torch.empty(0, self.model.config.vocab_size)
        experts = torch.cat(routes) if routed else None
        return Passed(hidden, self.logits(rows) if scored else no_logits, experts)

    def ahead(self, readings: Sequence[Reading], hidden: Tensor) -> Tensor:
        """Hidden states (T, D) of the MTP module: hidden (T, D) joined with these tokens.

        Each token stands one place behind its reading's position: it follows the one there.
        """
        passes, first = [], 0
        for batch, extents, real in self._passes(readings):
            self.cache.begin(extents)
            rows = _padded(hidden[first : first + real], len(batch.tokens))
            passes.append(self.model.predict_ahead(rows, batch, self.cache)[:real])
            first += real
        return passes[0] if len(passes) == 1 else torch.cat(passes)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (S, W) float32 on the CPU of the token after each of hidden (S, D)."""
        if self.tile is None:
            scores: Tensor = self.model.lm_head(hidden)
            return scores.float().cpu()
        tiles = [
            self.model.lm_head(_padded(rows, self.tile))[: len(rows)]
            for rows in hidden.split(self.tile)
        ]
        return torch.cat(tiles).float().cpu()

    def logit_chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """The same in pieces that fit memory."""
        rows = max(HEAD_NUMBERS // self.model.config.vocab_size, 1)
        for piece in hidden.split(rows):
            yield self.logits(piece)

    def _passes(self, readings: Sequence[Reading]) -> Iterator[tuple[Batch, list[Extent], int]]:
        """Each pass: its batch, what it reads of whom, and how many tokens are no padding."""
        if self.tile is None:
            extents = [Extent(r.pages, r.start, len(r.tokens)) for r in readings]
            tokens = [token for reading in readings for token in reading.tokens]
            yield self._batch(tokens, extents), extents, len(tokens)
            return
        tokens, extents = [], []
        for reading in readings:
            done = 0
            while done < len(reading.tokens):
                piece = reading.tokens[done : done + self.tile - len(tokens)]
                extents.append(Extent(reading.pages, reading.start + done, len(piece)))
                tokens += piece
                done += len(piece)
                if len(tokens) == self.tile:
                    yield self._batch(tokens, extents), extents, self.tile
                    tokens, extents = [], []
        if tokens:
            real, missing = len(tokens), self.tile - len(tokens)
            tokens, extents = tokens + [0] * missing, extents + [_PADDING] * missing
            yield self._batch(tokens, extents), extents, real

    def _batch(self, tokens: list[int], extents: list[Extent]) -> Batch:
        counts = np.array([extent.count for extent in extents])
        starts = np.array([extent.start for extent in extents])
        ends = counts.cumsum()
        positions = np.arange(len(tokens)) + np.repeat(starts - (ends - counts), counts)
        batch = Batch(
            torch.from_numpy(np.array(tokens)),
            torch.from_numpy(positions),
            torch.from_numpy(np.concatenate(([0], ends))),
        )
        return batch if self._device.type == "cpu" else batch.to(self._device)

    def _experts(self, routings: "tuple[Routing, ...]", real: int) -> Tensor:
        """The experts (T, M, K) of these tokens."""
        if not routings:
            return torch.empty(real, 0, self.config.num_experts_per_tok, dtype=torch.int64)
        return torch.stack([routing.experts[:real] for routing in routings], 1).cpu()

    def _count(self, routings: "tuple[Routing, ...]", real: int) -> None:
        """Add up which experts these tokens met."""
        if not routings:
            return
        num_moe, E = self.expert_load.shape
        experts = torch.stack([routing.experts[:real] for routing in routings])  # (M, T, K)
        experts = experts + torch.arange(num_moe, device=experts.device)[:, None, None] * E
        met = experts.flatten().bincount(minlength=num_moe * E)
        self.expert_load += met.view(num_moe, E).cpu()


@contextmanager
def even_shares() -> Iterator[None]:
    """At most two of torch's threads, as the deterministic mode needs.

    Each thread ends its share of an elementwise operation in scalar code, where float32 silu rounds
    differently. Halves of what a pass computes end on a vector, thirds may not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _padded(rows: Tensor, count: int) -> Tensor:
    """Rows (S, D) followed by rows of zeros, count in all."""
    missing = count - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows
