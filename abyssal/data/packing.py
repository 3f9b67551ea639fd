"""Packing: documents of a weighted mixture laid end to end into batches of one exact size.

    isolate=False   one endless stream cut into rows of seq_len; a row may begin and end inside a
                    document and its tokens see all before them in the row (section 4.1)
    isolate=True    every document sees only itself (section 5.1: fine-tuning); its positions
                    restart and the token after its end is never its label

DeepSeek-V3 (arXiv 2412.19437). The position in the data is one small dict: a packer that loads it
goes on with the same batches, bit for bit. Letters in shape comments:

    T tokens_per_batch    N spans of a batch
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from abyssal.batch import IGNORE, Batch
from abyssal.data.sources import Array, Excerpt, Source, SourceReader
from abyssal.errors import ConfigError, DataError

Flat = npt.NDArray[np.int64]

NOTHING = Excerpt(np.empty(0, np.int64), None)

_progress = attrgetter("progress")


class Packed(NamedTuple):
    """A batch, and which source each label comes from."""

    batch: Batch
    sources: torch.Tensor  # (T,) int64: positions in `Packer.names`


class Packer:
    """Batches without end from several sources, each in proportion to its weight in tokens.

    The next document always comes from the source that is furthest behind its share, so the
    mixture is right at every moment to within one document. With isolate=True a document that no
    longer fits is cut to fill the batch, without labels, and starts the next batch again: each of
    its tokens is learned once an epoch. Longer documents are taken in pieces of seq_len.

    Raises:
        ConfigError: sizes, rates or sources that cannot be packed.
        DataError: sources made with different tokenizers.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        tokens_per_batch: int,
        seq_len: int,
        isolate: bool,
        fim_rate: float = 0.0,
        seed: int,
    ):
        _check_sizes(tokens_per_batch, seq_len, isolate)
        _check_sources(sources)
        if not 0 <= fim_rate <= 1:
            raise ConfigError(f"fim_rate={fim_rate}, expected a share of documents from 0 to 1")
        if seed < 0:
            raise ConfigError(f"seed={seed}, expected a whole number of at least 0")
        self.tokens_per_batch = tokens_per_batch
        self.seq_len = seq_len
        self.isolate = isolate
        self.fim_rate = fim_rate
        self.seed = seed
        self._readers = [SourceReader(source, fim_rate, seed) for source in sources]
        self._vocab_size = min(source.shards.meta.vocab_size for source in sources)
        self._open: SourceReader | None = None  # whose document is being laid out ...
        self._excerpt = NOTHING  # ... the document ...
        self._offset = 0  # ... and how many of its tokens are done

    @property
    def names(self) -> list[str]:
        """The sources, in the order they were given."""
        return [reader.source.name for reader in self._readers]

    @property
    def epochs(self) -> dict[str, float]:
        """How many times each source has been read, for the training log."""
        return {reader.source.name: reader.epochs for reader in self._readers}

    @property
    def served(self) -> dict[str, int]:
        """Tokens taken from each source."""
        return {reader.source.name: reader.served for reader in self._readers}

    def next_batch(self) -> Batch:
        """The next T tokens in their spans, with labels."""
        return self.next().batch

    def next(self) -> Packed:
        """The same, and who brought what."""
        return self._isolated_batch() if self.isolate else self._stream_batch()

    def _stream_batch(self) -> Packed:
        """T tokens of the stream in rows of seq_len; the last label begins the next batch."""
        T = self.tokens_per_batch
        tokens, learned = np.empty(T + 1, np.int64), np.ones(T + 1, np.bool_)
        sources = np.empty(T + 1, np.int64)
        filled = 0
        while filled <= T:
            self._advance()
            take = min(len(self._excerpt.tokens) - self._offset, T + 1 - filled)
            piece = slice(self._offset, self._offset + take)
            tokens[filled : filled + take] = self._excerpt.tokens[piece]
            sources[filled : filled + take] = self._number
            if self._excerpt.mask is not None:
                learned[filled : filled + take] = self._excerpt.mask[piece]
            filled += take
            self._offset += take
        self._offset -= 1
        labels = np.where(learned[1:], tokens[1:], IGNORE)  # (T,)
        borders = np.arange(0, T + 1, self.seq_len)
        return self._packed(tokens[:T], labels, borders, sources[1:])

    def _isolated_batch(self) -> Packed:
        """T tokens of whole pieces, and the beginning of one more to fill the rest."""
        T = self.tokens_per_batch
        tokens, labels = np.empty(T, np.int64), np.full(T, IGNORE)
        sources = np.empty(T, np.int64)
        borders = [0]
        while (filled := borders[-1]) < T:
            self._advance()
            piece = self._excerpt.tokens[self._offset : self._offset + self.seq_len]
            take = min(len(piece), T - filled)
            tokens[filled : filled + take] = piece[:take]
            sources[filled : filled + take] = self._number
            if take == len(piece):
                labels[filled : filled + take - 1] = self._labels(take)
                self._offset += take
            borders.append(filled + take)
        return self._packed(tokens, labels, np.array(borders), sources)

    @property
    def _number(self) -> int:
        """Which source the open document is from."""
        assert self._open is not None
        return self._readers.index(self._open)

    def _labels(self, take: int) -> Array:
        """What to predict at all but the last of the next `take` tokens of the document."""
        inner = slice(self._offset + 1, self._offset + take)
        following = self._excerpt.tokens[inner]  # (take-1,)
        if self._excerpt.mask is None:
            return following
        return np.where(self._excerpt.mask[inner], following.astype(np.int64), IGNORE)

    def _advance(self) -> None:
        """Open the next document if the open one is done."""
        if self._offset == len(self._excerpt.tokens):
            self._open = min(self._readers, key=_progress)
            self._excerpt = self._open.next()
            self._offset = 0

    def _packed(self, tokens: Flat, labels: Flat, borders: Flat, sources: Flat) -> Packed:
        if tokens.max() >= self._vocab_size:
            raise DataError(
                f"a batch holds token {tokens.max()}, beyond the vocabulary of {self._vocab_size}; "
                f"a shard file was altered: find it with Shards.verify and write it again"
            )
        lengths = np.diff(borders)  # (N,)
        positions = np.arange(len(tokens)) - np.repeat(borders[:-1], lengths)  # (T,)
        arrays = (tokens, positions, borders, labels, sources)
        *fields, brought = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
        return Packed(Batch(*fields), brought)

    def state_dict(self) -> dict[str, object]:
        """The position in the data, as JSON knows it."""
        sources = {reader.source.name: reader.state_dict() for reader in self._readers}
        return {
            "data": self._identity(),
            "sources": sources,
            "open": self._open.source.name if self._open else None,
            "offset": self._offset,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on where another packer of the same data stopped.

        tokens_per_batch and seq_len may differ from those at saving (a batch that grows); sources,
        weights, seed, fim_rate and isolate may not.

        Raises:
            DataError: the state is of other data, or no place in it.
        """
        identity, saved = self._identity(), state.get("data")
        if saved != identity:
            raise DataError(
                f"the saved position in the data belongs to {saved}, but this run has {identity}; "
                f"give the run the data and seed it was started with, or start it anew"
            )
        places, name, offset = state.get("sources"), state.get("open"), state.get("offset")
        readers = {reader.source.name: reader for reader in self._readers}
        if (
            not isinstance(places, dict)
            or places.keys() != readers.keys()
            or not isinstance(offset, int)
            or not (name is None or name in readers)
        ):
            raise DataError(
                f"the saved position in the data is {dict(state)}, which is incomplete; "
                f"go back to an older checkpoint"
            )
        for reader in self._readers:
            reader.load_state_dict(places[reader.source.name])
        self._open = readers[name] if isinstance(name, str) else None
        self._excerpt = self._open.current() if self._open else NOTHING
        self._offset = offset
        if not 0 <= offset <= len(self._excerpt.tokens):
            raise DataError(
                f"the saved position is token {offset} of a document of "
                f"{len(self._excerpt.tokens)}; go back to an older checkpoint"
            )

    def _identity(self) -> dict[str, object]:
        """What must be the same for a saved position to mean the same."""
        sources = [
            {
                "name": reader.source.name,
                "weight": reader.source.weight,
                "sha256": reader.source.shards.meta.sha256,
            }
            for reader in self._readers
        ]
        return {
            "seed": self.seed,
            "isolate": self.isolate,
            "fim_rate": self.fim_rate,
            "sources": sources,
        }


def _check_sizes(tokens_per_batch: int, seq_len: int, isolate: bool) -> None:
    if seq_len < 2:
        raise ConfigError(
            f"seq_len={seq_len}, expected at least 2: one token to read, one to learn"
        )
    if tokens_per_batch < seq_len:
        raise ConfigError(
            f"tokens_per_batch={tokens_per_batch} holds no sequence of seq_len={seq_len}; "
            f"raise tokens_per_batch or lower seq_len"
        )
    if not isolate and tokens_per_batch % seq_len:
        raise ConfigError(
            f"tokens_per_batch={tokens_per_batch} is not a multiple of seq_len={seq_len}, as rows "
            f"of equal length need; take {tokens_per_batch // seq_len * seq_len}"
        )


def _check_sources(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"sources are named {names}; expected at least one and each name once")
    tokenizers = {source.name: source.shards.meta.tokenizer_sha256 for source in sources}
    if len(set(tokenizers.values())) > 1:
        raise DataError(
            f"sources were encoded with different tokenizers {tokenizers}; "
            f"write their shards again with one tokenizer"
        )
