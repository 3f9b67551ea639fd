"""Shards: the tokens of many documents in a folder, written once and read through memory maps.

    meta.json           what the folder holds, the hash of every file, and a hash of itself
    index.bin           int64, where each document starts among all tokens, then where the last ends
    tokens-00000.bin    uint16, or uint32 for a large vocabulary; no document straddles two files
    mask-00000.bin      uint8, 1 = the model is trained to write this token; only if some are not

All little endian. A folder appears whole or not at all. Opening it checks the sizes of all files
and the hashes of the small ones; `Shards.verify` reads everything.
"""

import hashlib
import secrets
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from abyssal.data.documents import DropReport
from abyssal.data.shard_draft import ShardDraft
from abyssal.data.shard_meta import INDEX_NAME, META_NAME, mask_name, read_meta, tokens_name
from abyssal.errors import DataError

FILE_TOKENS = 1 << 28  # a file of tokens takes no more than this, which is at most 1 GiB

Array = npt.NDArray[np.integer]


class Shards:
    """The documents of a shard folder, as read-only views into its files.

    Raises:
        DataError: a file is missing, its size or hash is not what meta.json promises, or the index
            does not fit the tokens.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        self._starts = self._open_index()
        self._tokens: list[Array] = []
        self._masks: list[Array] = []
        for number, file in enumerate(self.meta.files):
            size = file.num_tokens
            self._tokens.append(self._open(tokens_name(number), f"<u{self.meta.token_bytes}", size))
            if self.meta.has_mask:
                self._masks.append(self._open(mask_name(number), "u1", size))
        # Where each file starts among all tokens; its last entry is their number.
        self._file_starts = [0, *accumulate(file.num_tokens for file in self.meta.files)]
        self._check_index()

    def __len__(self) -> int:
        return self.meta.num_documents

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return self.meta.num_tokens

    def tokens(self, document: int) -> Array:
        """The tokens (n,) of one document, uint16 or uint32, read-only."""
        return self._cut(self._tokens, document)

    def mask(self, document: int) -> Array | None:
        """1 where the document's token is to be learned (n,) uint8; None if all tokens are."""
        return self._cut(self._masks, document) if self._masks else None

    def _cut(self, files: list[Array], document: int) -> Array:
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)} in {self.folder}")
        start, end = self._starts[document : document + 2].tolist()
        number = bisect_right(self._file_starts, start) - 1
        origin = self._file_starts[number]
        return files[number][start - origin : end - origin]

    def verify(self) -> None:
        """Read every file and compare it with its hash; DataError names the first that differs."""
        for number, file in enumerate(self.meta.files):
            self._check_hash(tokens_name(number), file.tokens_sha256)
            if file.mask_sha256 is not None:
                self._check_hash(mask_name(number), file.mask_sha256)
            largest = int(self._tokens[number].max())
            if largest >= self.meta.vocab_size:
                raise DataError(
                    f"{self.folder / tokens_name(number)} holds token {largest}, beyond its "
                    f"vocabulary of {self.meta.vocab_size}; write the folder again"
                )

    def _open(self, name: str, dtype: str, size: int) -> Array:
        """The file as a flat array (size,), mapped; its bytes are read when they are used."""
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{self.folder} lacks {name}; write the folder again")
        expected, found = size * np.dtype(dtype).itemsize, path.stat().st_size
        if expected != found or not size:
            raise DataError(
                f"{path} has {found:,} bytes where {META_NAME} promises {expected:,}; "
                f"write the folder again"
            )
        # A plain array on the map: slices of np.memmap itself take several times as long.
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)

    def _open_index(self) -> Array:
        starts = self._open(INDEX_NAME, "<i8", self.meta.num_documents + 1)
        self._check_hash(INDEX_NAME, self.meta.index_sha256)
        return starts

    def _check_index(self) -> None:
        starts, borders = self._starts, self._file_starts
        fits = (
            starts[0] == 0
            and starts[-1] == self.num_tokens == borders[-1]
            and bool((np.diff(starts) > 0).all())
            and bool((starts[np.searchsorted(starts, borders)] == borders).all())
        )
        if not fits:
            raise DataError(
                f"{self.folder / INDEX_NAME} does not fit its {self.num_tokens:,} tokens: "
                f"documents overlap, are empty or leave a gap; write the folder again"
            )

    def _check_hash(self, name: str, sha256: str) -> None:
        with (self.folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise DataError(
                f"{self.folder / name} does not match its hash in {META_NAME}: "
                f"it was altered or damaged; write the folder again"
            )


def write_shards(
    folder: str | Path,
    documents: Iterable[tuple[Sequence[int] | Array, Sequence[bool] | None]],
    *,
    tokenizer_sha256: str,
    vocab_size: int,
    control: Mapping[str, int],
    report: DropReport | None = None,
    file_tokens: int = FILE_TOKENS,
) -> Shards:
    """Write (tokens, mask) of every document into a new folder, which appears only when complete.

    `control` gives the ids of bos, eos, fim_begin, fim_hole and fim_end, as far as the tokenizer
    has them. A document without tokens is counted in `report`, which is kept in meta.json as it is
    at the end. A mask of None means that every token of the document is to be learned.

    Raises:
        DataError: the folder is taken or cannot be written, a token is outside the vocabulary, a
            mask does not fit, or no document is left.
    """
    target = Path(folder).resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DataError(f"{folder} exists and is not empty; choose another folder or remove it")
    report = report if report is not None else DropReport()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(parents=True)
        writer = ShardDraft(draft, vocab_size, file_tokens)
        try:
            for number, (tokens, mask) in enumerate(documents):
                if len(tokens):
                    writer.add(number, tokens, mask)
                else:
                    report.drop("no tokens", f"document {number}")
        finally:
            writer.close()
        writer.publish(target, tokenizer_sha256, control, report)
    except OSError as error:
        raise DataError(f"shards cannot be written to {folder}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Shards(folder)
