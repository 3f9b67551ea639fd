"""One safetensors file, written tensor by tensor, so that it need never be in memory as a whole.

    8 bytes: length of the header | header: JSON, filled up with spaces | the tensors, end to end

The format (github.com/huggingface/safetensors) says no more. As that library does, wider numbers
come first: every tensor then begins where its type may. The library writes only what is all there.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "I64": torch.int64,
    "F32": torch.float32, "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16, "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """What a header says of one tensor."""

    dtype: str  # one of DTYPES
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class ShardFile:
    """A file of tensors that are known by type and shape; each is put where it belongs, in any
    order. On leaving the `with` block all of them must have been put.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None
    ):
        header, self.offsets = _layout(entries, metadata or {"format": "pt"})
        self.entries = entries
        self.missing = set(entries)
        self._file = path.open("wb")
        self._file.write(header)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor."""
        entry = self.entries[name]
        assert (NAMES[tensor.dtype], tuple(tensor.shape)) == entry, f"{name} is not {entry}"
        self._file.seek(self.offsets[name])
        self._file.write(_bytes_of(tensor))
        self.missing.remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        assert problem or not self.missing, f"not written: {sorted(self.missing)}"


def _layout(
    entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header of a file, and where in it each tensor begins."""
    said: dict[str, object] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    at = 0
    for name in sorted(entries, key=lambda name: (-DTYPES[entries[name].dtype].itemsize, name)):
        entry = entries[name]
        begins[name], at = at, at + entry.num_bytes
        said[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (begins[name], at),
        }
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + at for name, at in begins.items()}


def _bytes_of(tensor: Tensor) -> Any:  # numpy 2 does not say that its arrays are buffers
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
