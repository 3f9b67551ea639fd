"""A shard folder while it is being written, under a name of its own until it is complete.

The layout of the folder is described in shards.py.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from abyssal.data.documents import DropReport
from abyssal.data.shard_meta import (
    FORMAT,
    INDEX_NAME,
    META_NAME,
    ShardFile,
    ShardMeta,
    mask_name,
    tokens_name,
)
from abyssal.errors import DataError

Array = npt.NDArray[np.integer]


class ShardDraft:
    """A shard folder being written under another name."""

    def __init__(self, folder: Path, vocab_size: int, file_tokens: int):
        self.folder = folder
        self.vocab_size = vocab_size
        self.dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self.file_tokens = file_tokens
        self.starts = array("q", [0])
        self.has_mask = False
        self.files: list[_DraftFile] = []

    def add(self, number: int, tokens: Sequence[int] | Array, mask: Sequence[bool] | None) -> None:
        """Append one document."""
        flat = np.asarray(tokens)  # (n,)
        if flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() >= self.vocab_size:
            raise DataError(
                f"document {number} has tokens from {flat.min()} to {flat.max()}; expected whole "
                f"numbers from 0 to {self.vocab_size - 1}: encode it with this tokenizer"
            )
        learned = np.ones(len(flat), "u1") if mask is None else np.asarray(mask).astype("u1")
        if learned.shape != flat.shape:
            raise DataError(
                f"document {number} has {len(flat)} tokens and a mask of {len(learned)}; "
                f"expected one mask value for each token"
            )
        self.has_mask = self.has_mask or not learned.all()
        file = self._file_for(len(flat))
        file.append(flat.astype(f"<{np.dtype(self.dtype).str[1:]}"), learned)
        self.starts.append(self.starts[-1] + len(flat))

    def _file_for(self, size: int) -> "_DraftFile":
        """The open file, or the next one if `size` more tokens would overfill it."""
        if not self.files or self.files[-1].num_tokens + size > self.file_tokens:
            self.close()
            self.files.append(_DraftFile(self.folder, len(self.files)))
        return self.files[-1]

    def close(self) -> None:
        """Bring the open file to disk."""
        if self.files:
            self.files[-1].close()

    def publish(
        self, target: Path, tokenizer_sha256: str, control: Mapping[str, int], report: DropReport
    ) -> None:
        """Write index and meta.json, then give the folder its name."""
        if len(self.starts) == 1:
            raise DataError(f"no document is left for {target}: {report.summary()}")
        index = np.asarray(self.starts).astype("<i8").tobytes()
        _write(self.folder / INDEX_NAME, index)
        if not self.has_mask:
            for number in range(len(self.files)):
                (self.folder / mask_name(number)).unlink()
        meta = ShardMeta(
            format=FORMAT,
            dtype=self.dtype,
            vocab_size=self.vocab_size,
            tokenizer_sha256=tokenizer_sha256,
            control=dict(control),
            num_documents=len(self.starts) - 1,
            num_tokens=self.starts[-1],
            has_mask=self.has_mask,
            index_sha256=hashlib.sha256(index).hexdigest(),
            files=tuple(file.described(self.has_mask) for file in self.files),
            report=report.to_dict(),
        )
        said = json.dumps({**meta.to_dict(), "sha256": meta.sha256}, indent=1)
        _write(self.folder / META_NAME, said.encode())
        self.folder.replace(target)


class _DraftFile:
    """One file of tokens being written, its masks beside it, both hashed on the way."""

    def __init__(self, folder: Path, number: int):
        self.num_tokens = 0
        self._hashes = hashlib.sha256(), hashlib.sha256()
        self._outputs = (
            (folder / tokens_name(number)).open("wb"),
            (folder / mask_name(number)).open("wb"),
        )

    def append(self, tokens: Array, mask: Array) -> None:
        for values, digest, output in zip((tokens, mask), self._hashes, self._outputs, strict=True):
            data = values.tobytes()
            digest.update(data)
            output.write(data)
        self.num_tokens += len(tokens)

    def close(self) -> None:
        for output in self._outputs:
            if not output.closed:
                output.flush()
                os.fsync(output.fileno())
                output.close()

    def described(self, has_mask: bool) -> ShardFile:
        tokens, mask = (digest.hexdigest() for digest in self._hashes)
        return ShardFile(
            num_tokens=self.num_tokens,
            tokens_sha256=tokens,
            mask_sha256=mask if has_mask else None,
        )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
