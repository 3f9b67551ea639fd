"""Tokens of many sequences laid end to end, and where each begins: the one shape a model eats.

There is no batch dimension and no padding. ``cu_seqlens`` says where sequences begin, so
``tokens[cu_seqlens[n]:cu_seqlens[n + 1]]`` is the n-th; only attention needs to know.

    T tokens of all sequences together    N sequences    D hidden_size
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle

import torch
from torch import Tensor

IGNORE = -100  # the label of a position that is not scored


@dataclass(frozen=True, slots=True)
class Batch:
    """Flat tokens with their positions, the borders of their sequences, and perhaps labels."""

    tokens: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, counted within the sequence
    cu_seqlens: Tensor  # (N+1,) int64, from 0 to T; stays on the CPU
    labels: Tensor | None = None  # (T,) int64: the token to predict at each position, or IGNORE
    embeds: Tensor | None = None  # (T, D): used in place of the tokens' embeddings (images)

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        labels: Sequence[Sequence[int]] | None = None,
        multiple: int = 1,
    ) -> "Batch":
        """Lay token lists end to end; labels, if given, have the same lengths and are already
        shifted.

        The first sequences once more, ignored, may bring T to a multiple, if that is at most a
        quarter more: for each new T a matrix library prepares every product anew, which takes as
        long as the product, and keeps it.
        """
        total = sum(map(len, sequences))
        missing = -total % multiple
        if 0 < 4 * missing <= total:
            again = list(_repeated(sequences, missing))
            sequences = [*sequences, *again]
            labels = None if labels is None else [*labels, *([IGNORE] * len(one) for one in again)]
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or min(lengths) == 0:
            raise ValueError(
                "a Batch needs at least one sequence, and each needs at least one token"
            )
        tokens = torch.tensor([token for sequence in sequences for token in sequence])
        positions = torch.cat([torch.arange(length) for length in lengths])
        cu_seqlens = torch.tensor([0, *accumulate(lengths)])
        flat = None if labels is None else torch.tensor([label for row in labels for label in row])
        if flat is not None and flat.shape != tokens.shape:
            raise ValueError(f"{len(flat)} labels for {len(tokens)} tokens; expected one for each")
        return cls(tokens, positions, cu_seqlens, flat)

    @property
    def lengths(self) -> list[int]:
        """Tokens in each sequence."""
        return self.cu_seqlens.diff().tolist()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device`; the borders stay where attention plans with
        them.
        """
        labels = None if self.labels is None else self.labels.to(device)
        embeds = None if self.embeds is None else self.embeds.to(device)
        return Batch(
            self.tokens.to(device), self.positions.to(device), self.cu_seqlens, labels, embeds
        )


def _repeated(sequences: Sequence[Sequence[int]], tokens: int) -> Iterator[Sequence[int]]:
    """The sequences one after the other, until there are so many tokens."""
    for sequence in cycle(sequences):
        yield sequence[:tokens]
        tokens -= min(tokens, len(sequence))
        if not tokens:
            return
