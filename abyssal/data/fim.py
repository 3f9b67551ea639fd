"""Fill in the middle: a document told as beginning, end, then what lies between.

    <bos> <fim_begin> prefix <fim_hole> suffix <fim_end> middle <eos>        prefix-suffix-middle

DeepSeek-V3 (arXiv 2412.19437), section 4.1: one document in ten, before packing. A model that has
read such documents can write between two pieces of text, although it only ever predicts the next
token.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]


class FimControl(NamedTuple):
    """The ids of the control tokens that frame the pieces."""

    bos: int
    eos: int
    fim_begin: int
    fim_hole: int
    fim_end: int

    @classmethod
    def missing(cls, control: Mapping[str, int]) -> list[str]:
        """The control tokens that are needed and not there."""
        return [name for name in cls._fields if name not in control]

    @classmethod
    def of(cls, control: Mapping[str, int]) -> "FimControl":
        """The ids from a mapping that holds them all, and perhaps others."""
        return cls(*(control[name] for name in cls._fields))


def fill_in_middle(tokens: Tokens, control: FimControl, rng: np.random.Generator) -> Tokens:
    """The document (n,) cut at two random points and reordered (n+3,).

    Its <bos> and <eos>, where it has them, stay at the ends. Any piece may be empty: an editor asks
    at the start and at the end of a file too.
    """
    start = 1 if tokens[0] == control.bos else 0
    end = len(tokens) - 1 if len(tokens) > start and tokens[-1] == control.eos else len(tokens)
    left, right = np.sort(rng.integers(start, end + 1, size=2))
    return np.concatenate(
        [
            tokens[:start],
            [control.fim_begin],
            tokens[start:left],
            [control.fim_hole],
            tokens[right:end],
            [control.fim_end],
            tokens[left:right],
            tokens[end:],
        ]
    )
