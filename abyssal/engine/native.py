"""Passes of a packed model over the paged cache: what `Runner` does, in one native call each.

T tokens of a pass    S sequences    D hidden_size    W vocab_size    M MoE layers
E n_routed_experts    K num_experts_per_tok
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abyssal.config import ModelConfig
from abyssal.engine import packed
from abyssal.engine.cache import PagedCache
from abyssal.engine.pages import PAGE
from abyssal.engine.runner import HEAD_NUMBERS, Passed, Reading
from abyssal.kernels.stack import Plan, Stack
from abyssal.model.rope import cos_sin, softmax_scale

if TYPE_CHECKING:  # a start from a packed file needs no model
    from abyssal.model.transformer import DeepSeekV3

PASS_TOKENS = 512  # in one native call: what its buffers are made for


def stack_of(
    model: "DeepSeekV3 | str | Path", config: ModelConfig, dtype: torch.dtype | None = None
) -> Stack:
    """A model in memory, or of a folder, ready for native passes; `dtype` recasts a folder's."""
    if isinstance(model, str | Path):
        weights = packed.from_folder(model, config, dtype)
    else:
        weights = packed.from_model(model)
    return Stack(config, weights, softmax_scale(config))


class NativeRunner:
    """A packed model and its cache."""

    def __init__(self, stack: Stack, cache: PagedCache, *, fixed: bool = False):
        """With `fixed`, the bits of a row do not depend on how its prompt was cut."""
        self.stack, self.cache, self.fixed = stack, cache, fixed
        self.config = config = stack.config
        num_moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
        self.expert_load = torch.zeros(num_moe, config.n_routed_experts, dtype=torch.int64)

    def beside(self, cache: PagedCache) -> "NativeRunner":
        """The same model over another cache; `cache.fixed` says how it is read."""
        return NativeRunner(self.stack, cache, fixed=cache.fixed)

    def refresh(self, model: "DeepSeekV3") -> None:
        """Take over the weights of a model like the one that was packed."""
        packed.refill(self.stack.weights, model)

    def read(
        self, readings: Sequence[Reading], scored: Sequence[int] = (), *, routed: bool = False
    ) -> Passed:
        """Hidden states of these tokens, in their order, and what follows those in rows `scored`.

        Their latents are cached. With `routed`, also the experts that each of them met.
        """
        if _num_tokens(readings) <= PASS_TOKENS:
            return self._run(readings, None, scored, routed)
        passes = [self._run(some, None, routed=routed) for some in _passes(readings)]
        hidden = torch.cat([passed.hidden for passed in passes])
        routes = [passed.experts for passed in passes if passed.experts is not None]
        logits = self.logits(hidden[list(scored)])
        return Passed(hidden, logits, torch.cat(routes) if routed else None)

    def ahead(self, readings: Sequence[Reading], hidden: Tensor) -> Tensor:
        """Hidden states (T, D) of the MTP module: hidden (T, D) joined with these tokens.

        Each token stands one place behind its reading's position: it follows the one there.
        """
        passes, first = [], 0
        for some in _passes(readings):
            count = sum(len(reading.tokens) for reading in some)
            passes.append(self._run(some, hidden[first : first + count].contiguous()).hidden)
            first += count
        return passes[0] if len(passes) == 1 else torch.cat(passes)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (S, W) float32 of the token after each of hidden (S, D)."""
        return self.stack.logits(hidden)

    def logit_chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """The same in pieces that fit memory."""
        rows = max(HEAD_NUMBERS // self.stack.config.vocab_size, 1)
        for piece in hidden.split(rows):
            yield self.logits(piece)

    def _run(
        self,
        readings: Sequence[Reading],
        before: Tensor | None,
        scored: Sequence[int] = (),
        routed: bool = False,
    ) -> Passed:
        plan = Plan([], [], [], [], list(scored))
        longest = 0
        for tokens, pages, start in readings:
            end = start + len(tokens)
            longest = max(longest, end)
            plan.token.extend(tokens)
            plan.rows.append(len(tokens))
            plan.start.append(start)
            plan.pages.extend(pages[: (end - 1) // PAGE + 1])
        self._reach(longest)
        met = self.expert_load if before is None else None
        pool, fixed = self.cache.pool, self.fixed
        chosen: Tensor | None = None
        if routed:
            shape = len(self.expert_load), len(plan.token), self.config.num_experts_per_tok
            chosen = torch.empty(shape, dtype=torch.int32)
        passed = self.stack.run(plan, pool, before=before, met=met, chosen=chosen, absorbed=fixed)
        return Passed(*passed, None if chosen is None else chosen.transpose(0, 1))

    def _reach(self, length: int) -> None:
        """Have the angles of all positions below `length`, and of some more."""
        if length <= self.stack.num_angles:
            return
        more = torch.arange(max(2 * length, 1024))
        self.stack.set_angles(*cos_sin(self.stack.config, more))


def _num_tokens(readings: Sequence[Reading]) -> int:
    return sum([len(reading.tokens) for reading in readings])


def _passes(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """Readings in order, PASS_TOKENS tokens at a time; one that is too long goes on in the next."""
    if _num_tokens(readings) <= PASS_TOKENS:
        yield list(readings)
        return
    some: list[Reading] = []
    room = PASS_TOKENS
    for reading in readings:
        done = 0
        while done < len(reading.tokens):
            piece = reading.tokens[done : done + room]
            some.append(Reading(piece, reading.pages, reading.start + done))
            done += len(piece)
            room -= len(piece)
            if not room:
                yield some
                some, room = [], PASS_TOKENS
    if some:
        yield some
