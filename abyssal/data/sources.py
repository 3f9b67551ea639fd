"""A source of documents and the reader that goes through it, epoch after epoch.

Each epoch reads every document once, in an order that follows from (seed, source name, epoch)
alone. So three numbers, epoch, position and tokens served, say exactly where a reader is.
"""

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from abyssal.data.fim import FimControl, fill_in_middle
from abyssal.data.shards import Shards
from abyssal.errors import ConfigError, DataError

Array = npt.NDArray[np.integer]

# Tell the streams of random numbers of one (seed, source, epoch) apart.
_ORDER, _FIM, _CUTS = 0, 1, 2


@dataclass(frozen=True)
class Source:
    """Shards and their share of the mixture; weights are relative and measured in tokens."""

    shards: Shards
    weight: float
    name: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(
                f"source {self.name!r} has weight {self.weight}, expected a number above 0; "
                f"leave the source out to give it no share"
            )


class Excerpt(NamedTuple):
    """A document as it is laid into batches."""

    tokens: Array  # (n,) any integer type
    mask: Array | None  # (n,) uint8, 1 = to be learned; None = all


class SourceReader:
    """The documents of one source without end, shuffled anew each epoch."""

    def __init__(self, source: Source, fim_rate: float, seed: int):
        self.source = source
        self.epoch = 0
        self.position = 0  # documents of this epoch already handed out
        self.served = 0  # tokens handed out since the beginning ...
        self.progress = 0.0  # ... per weight: who has the least is next
        self.fim_rate = fim_rate
        self._control = _fim_control(source) if fim_rate > 0 else None
        self._key = [seed, zlib.crc32(source.name.encode())]
        self._shuffle()

    def _shuffle(self) -> None:
        size = len(self.source.shards)
        self._order = self._rng(_ORDER).permutation(size)  # (documents,)
        # Drawn for all documents at once: a generator for each would take most of the time.
        self._is_fim = self._rng(_FIM).random(size, np.float32) < self.fim_rate  # (documents,)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, self.epoch, *purpose])

    @property
    def epochs(self) -> float:
        """How many times the source has been read: 1.5 is once and half of its documents again."""
        return self.epoch + self.position / len(self.source.shards)

    def next(self) -> Excerpt:
        """The next document."""
        if self.position == len(self.source.shards):
            self.epoch, self.position = self.epoch + 1, 0
            self._shuffle()
        self.position += 1
        excerpt = self.current()
        self._serve(self.served + len(excerpt.tokens))
        return excerpt

    def _serve(self, served: int) -> None:
        self.served = served
        self.progress = served / self.source.weight

    def current(self) -> Excerpt:
        """The document handed out last, the same again."""
        document = int(self._order[self.position - 1])
        shards = self.source.shards
        tokens, mask = shards.tokens(document), shards.mask(document)
        # A document with a mask is a conversation: its parts have an order that must stay.
        if self._control is not None and mask is None and self._is_fim[document]:
            rng = self._rng(_CUTS, document)
            tokens = fill_in_middle(tokens.astype(np.int64), self._control, rng)
        return Excerpt(tokens, mask)

    def state_dict(self) -> dict[str, int]:
        """Where the reader is, as JSON knows it."""
        return {"epoch": self.epoch, "position": self.position, "served": self.served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another reader of this source and seed was; DataError if that is nowhere."""
        values = [state.get(name) for name in ("epoch", "position", "served")]
        size = len(self.source.shards)
        counts = all(type(value) is int and value >= 0 for value in values)
        if not counts or state["position"] > size:
            raise DataError(
                f"state of source {self.source.name!r} is {state}, which is no place among its "
                f"{size} documents; it was saved for other data or altered"
            )
        self.epoch, self.position = state["epoch"], state["position"]
        self._serve(state["served"])
        self._shuffle()


def _fim_control(source: Source) -> FimControl:
    control = source.shards.meta.control
    if missing := FimControl.missing(control):
        raise ConfigError(
            f"fim_rate is above 0, but the shards of source {source.name!r} were written without "
            f"the control tokens {', '.join(missing)}; set fim_rate=0 or write them again"
        )
    return FimControl.of(control)
