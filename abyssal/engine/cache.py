"""The latent cache of many sequences at once: C + R numbers per token and layer, nothing per head.

DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. Live sequences fill slots 0..S-1 of one buffer with
no gap between them, so a decoding step reads it in place: a view (S, longest, C+R), two batched
products and a masked softmax. The buffer doubles when a slot or a position is missing; nothing is
copied per step.

    T tokens of a pass    S live sequences    H heads    C kv_lora_rank    R qk_rope_head_dim
"""

from itertools import accumulate

import torch
from torch import Tensor

from abyssal.config import ModelConfig

BLOCK = 128  # query tokens of a prompt whose scores are in memory together


class SequenceCache:
    """A `LatentCache` for a changing set of sequences; slot s holds the s-th of them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device):
        self.config = config
        self.lengths: list[int] = []  # tokens cached in each slot
        # Zeros, not empty: a masked position has weight 0, and 0 * nan would be nan.
        shape = (config.num_hidden_layers, 1, 64, config.latent_size)
        self.buffer = torch.zeros(shape, dtype=dtype, device=device)

    def add(self) -> int:
        """A slot for one more sequence."""
        self.lengths.append(0)
        return len(self.lengths) - 1

    def remove(self, slot: int) -> None:
        """Forget the sequence in a slot; the one in the last slot moves into it."""
        last = len(self.lengths) - 1
        if slot != last:
            length = self.lengths[last]
            self.buffer[:, slot, :length] = self.buffer[:, last, :length]
            self.lengths[slot] = length
        self.lengths.pop()

    def begin(self, counts: list[int]) -> None:
        """Make room for a pass that brings counts[s] >= 1 new tokens to each slot s."""
        befores = self.lengths
        self.lengths = [before + count for before, count in zip(befores, counts, strict=True)]
        self._grow(len(counts), max(self.lengths))
        capacity, device = self.buffer.shape[2], self.buffer.device
        places = [
            slot * capacity + position
            for slot, (before, after) in enumerate(zip(befores, self.lengths, strict=True))
            for position in range(before, after)
        ]
        self._places = torch.tensor(places, device=device)  # (T,) rows of the flat buffer
        starts = [0, *accumulate(counts)]
        singles = [slot for slot, count in enumerate(counts) if count == 1]
        self._prompts = [
            (slot, starts[slot], starts[slot + 1]) for slot, n in enumerate(counts) if n > 1
        ]
        self._all_single = len(singles) == len(counts)
        self._single_rows = torch.tensor([starts[slot] for slot in singles], device=device)
        self._longest = max((self.lengths[slot] for slot in singles), default=0)
        # A range of leading slots is read in place; otherwise (a prompt cut in pieces) by index.
        in_front = singles == list(range(len(singles)))
        self._single_slots = None if in_front else torch.tensor(singles, device=device)
        lengths = torch.tensor([self.lengths[slot] for slot in singles], device=device)
        self._beyond: Tensor | None = None  # (S, 1, longest): positions a sequence does not have
        if len({self.lengths[slot] for slot in singles}) > 1:
            beyond = torch.arange(self._longest, device=device) >= lengths.unsqueeze(-1)
            self._beyond = beyond.unsqueeze(1)

    def append(self, layer: int, latents: Tensor) -> None:
        """Remember the latents (T, C+R) of this pass."""
        self.buffer[layer].flatten(0, 1).index_copy_(0, self._places, latents)

    def attend(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """q (T, H, C+R) against all its sequence has cached so far -> mixed latents (T, H, C)."""
        if self._all_single:
            return self._attend_singles(layer, q, scale)
        out = q.new_empty(*q.shape[:2], self.config.kv_lora_rank)
        if len(self._single_rows):
            rows = self._single_rows
            out[rows] = self._attend_singles(layer, q[rows], scale)
        for slot, start, end in self._prompts:
            latents = self.buffer[layer, slot, : self.lengths[slot]]
            for first in range(start, end, BLOCK):
                rows_of = slice(first, min(first + BLOCK, end))
                seen = latents[: self.lengths[slot] - (end - rows_of.stop)]
                out[rows_of] = self._attend_prompt(seen, q[rows_of], scale)
        return out

    def _attend_singles(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """One query each, q (S, H, C+R), against padded latents (S, longest, C+R) -> (S, H, C)."""
        slots = self._single_slots
        latents = self.buffer[layer, : len(q)] if slots is None else self.buffer[layer, slots]
        latents = latents[:, : self._longest]
        scores = torch.bmm(q, latents.transpose(1, 2)).float().mul_(scale)  # (S, H, longest)
        if self._beyond is not None:
            scores.masked_fill_(self._beyond, -torch.inf)
        weights = scores.softmax(-1).to(q.dtype)
        return torch.bmm(weights, latents[..., : self.config.kv_lora_rank])

    def _attend_prompt(self, latents: Tensor, q: Tensor, scale: float) -> Tensor:
        """The last n tokens of a sequence, q (n, H, C+R), against its L latents -> (n, H, C)."""
        n, L = len(q), len(latents)
        scores = (
            (q.flatten(0, 1) @ latents.T).float().mul_(scale).unflatten(0, (n, -1))
        )  # (n, H, L)
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)  # (n, n)
        scores[..., L - n :].masked_fill_(future.unsqueeze(1), -torch.inf)
        weights = scores.softmax(-1).to(q.dtype).flatten(0, 1)
        mixed: Tensor = weights @ latents[:, : self.config.kv_lora_rank]  # (n*H, C)
        return mixed.view(n, -1, mixed.shape[-1])

    def _grow(self, slots: int, positions: int) -> None:
        """Double the slots or the positions of the buffer until these fit."""
        layers, have_slots, have_positions, width = self.buffer.shape
        want_slots, want_positions = (
            _doubled(have_slots, slots),
            _doubled(have_positions, positions),
        )
        if (want_slots, want_positions) == (have_slots, have_positions):
            return
        grown = self.buffer.new_zeros(layers, want_slots, want_positions, width)
        grown[:, :have_slots, :have_positions] = self.buffer
        self.buffer = grown


def _doubled(have: int, want: int) -> int:
    while have < want:
        have *= 2
    return have
