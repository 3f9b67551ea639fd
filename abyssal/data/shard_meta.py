"""The meta.json of a shard folder: what the folder holds, the hash of every file, and of itself.

The layout of the folder is described in shards.py.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from abyssal.errors import DataError

FORMAT = "abyssal-shards-1"
META_NAME = "meta.json"
INDEX_NAME = "index.bin"
DTYPES = {"uint16": 2, "uint32": 4}  # bytes of a token


def tokens_name(number: int) -> str:
    """The name of the number-th file of tokens."""
    return f"tokens-{number:05d}.bin"


def mask_name(number: int) -> str:
    """The name of the number-th file of masks."""
    return f"mask-{number:05d}.bin"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """One file of tokens and, where documents carry masks, its twin."""

    num_tokens: int
    tokens_sha256: str
    mask_sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMeta:
    """What meta.json says."""

    format: str
    dtype: str  # "uint16" or "uint32"
    vocab_size: int
    tokenizer_sha256: str
    control: Mapping[str, int]  # ids of bos, eos, fim_begin, fim_hole, fim_end
    num_documents: int
    num_tokens: int
    has_mask: bool
    index_sha256: str
    files: tuple[ShardFile, ...]
    report: Mapping[str, object]  # what was dropped on the way, DropReport.to_dict()

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON knows them, without the hash."""
        return asdict(self)

    @property
    def sha256(self) -> str:
        """The hash that identifies these shards: it covers the hashes of all files."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def token_bytes(self) -> int:
        """Bytes of one token on disk."""
        return DTYPES[self.dtype]


def read_meta(folder: Path) -> ShardMeta:
    """The checked meta.json of a shard folder; DataError if it is missing, not ours or altered."""
    path = folder / META_NAME
    if not path.is_file():
        raise DataError(f"{folder} is not a shard folder: it has no {META_NAME}; write it again")
    try:
        said = json.loads(path.read_bytes())
        sha256 = said.pop("sha256")
        files = tuple(ShardFile(**file) for file in said.pop("files"))
        meta = ShardMeta(**said, files=files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is not the meta file of shards ({type(error).__name__}: {error}); "
            f"write the folder again"
        ) from None
    if meta.format != FORMAT:
        raise DataError(f"{path} has format {meta.format!r}, expected {FORMAT!r}; write it again")
    if meta.sha256 != sha256:
        raise DataError(f"{path} does not match its own hash: it was altered; write it again")
    _check_values(path, meta)
    return meta


def _check_values(path: Path, meta: ShardMeta) -> None:
    """Refuse a file that hashes well but was never written by us."""
    counts = [meta.num_documents, meta.num_tokens, *(file.num_tokens for file in meta.files)]
    counts += [meta.vocab_size, *meta.control.values()]
    if any(type(count) is not int or count < 0 for count in counts) or not meta.num_documents:
        raise DataError(f"{path} counts {counts}; expected whole numbers and some documents")
    masks = [file.mask_sha256 is not None for file in meta.files]
    if meta.dtype not in DTYPES or any(has_mask != meta.has_mask for has_mask in masks):
        raise DataError(f"{path} contradicts itself on dtype {meta.dtype!r} or on masks")
    beyond = {name: token for name, token in meta.control.items() if token >= meta.vocab_size}
    if beyond:
        raise DataError(
            f"{path} has control tokens {beyond} beyond its vocabulary of {meta.vocab_size}"
        )
