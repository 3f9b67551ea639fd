"""The files of a model folder: its index, the headers of its shards, and tensors out of them.

Shards are safetensors; ``model.safetensors.index.json`` says which tensor is in which. A folder
with one shard may do without. Every file that is missing or broken is named in a CheckpointError.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from abyssal.checkpoint import files, fp8, names
from abyssal.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FP8 = "F8_E4M3"
DTYPES = {  # as stored -> as read
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    FP8: torch.bfloat16,
}
_SHOWN = 20  # names of each kind in an error


class Stored(NamedTuple):
    """What a shard's header says of one tensor."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


def headers(folder: Path) -> dict[str, Stored]:
    """Every stored tensor by published name; shards' headers are read, not their data."""
    index = _weight_map(folder)
    stored: dict[str, Stored] = {}
    for path in sorted({folder / file for file in index.values()}):
        shard = _open(path)
        for published in shard.keys():  # noqa: SIM118 (a handle, not a mapping)
            if index.get(published) == path.name:
                piece = shard.get_slice(published)
                stored[published] = Stored(path, tuple(piece.get_shape()), piece.get_dtype())
    return stored


def _weight_map(folder: Path) -> dict[str, str]:
    """The file name of each published tensor, all of them present."""
    if (folder / INDEX).exists():
        found = files.read_json(folder / INDEX).get("weight_map")
        if not isinstance(found, dict) or not all(
            isinstance(file, str) and file and Path(file).name == file for file in found.values()
        ):
            raise CheckpointError(
                f"{folder / INDEX}: expected a 'weight_map' from tensor names to file names; "
                "copy the file again"
            )
        absent = sorted({file for file in found.values() if not (folder / file).is_file()})
        if absent:
            raise CheckpointError(
                f"{folder}: the index names {some(absent)}, not in this folder; copy them again"
            )
        return found
    if (folder / SINGLE).is_file():
        return dict.fromkeys(_open(folder / SINGLE).keys(), SINGLE)
    raise CheckpointError(f"{folder}: no weights; expected {INDEX} and its shards, or {SINGLE}")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({problem}); copy it again"
        ) from None


def block_size(folder: Path) -> tuple[int, int]:
    """Rows and columns that share a scale; 128 by 128 where config.json does not say."""
    quantization = files.read_json(folder / "config.json").get("quantization_config") or {}
    size = list(fp8.BLOCK)
    if isinstance(quantization, dict):
        size = quantization.get("weight_block_size", size)
    match size:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise CheckpointError(
        f"{folder / 'config.json'}: weight_block_size={size!r}, expected [rows, columns]"
    )


class Shards:
    """Tensors by published name from open shards."""

    def __init__(self, stored: Mapping[str, Stored], block: tuple[int, int]):
        self.stored, self.block = stored, block
        self.open: dict[Path, Any] = {}  # safetensors exports no type for its handle

    def tensor(self, published: str) -> Tensor:
        """One tensor as stored, FP8 multiplied out."""
        entry = self.stored[published]
        weight = self._raw(published)
        if entry.dtype != FP8:
            return weight
        return fp8.dequantize(weight, self._raw(published + names.SCALE), self.block)

    def _raw(self, published: str) -> Tensor:
        path = self.stored[published].path
        if path not in self.open:
            self.open[path] = _open(path)
        tensor: Tensor = self.open[path].get_tensor(published)
        return tensor


def some(items: Sequence[str]) -> str:
    """The first items, and how many more there are."""
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
