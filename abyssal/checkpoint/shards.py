"""The files of a model folder: its index, the headers of its shards, and tensors out of them.

Shards are safetensors; ``model.safetensors.index.json`` says which tensor is in which. A folder
with one shard may do without. Every file that is missing or broken is named in a CheckpointError.
Weights may be stored quantized: FP8 in blocks as released, INT8 and INT4 as in integers.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from abyssal.checkpoint import files, fp8, integers, names
from abyssal.checkpoint.shard_file import Entry
from abyssal.checkpoint.stored import Matrix
from abyssal.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FP8, INT8 = "F8_E4M3", "I8"
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", FP8: "fp8", INT8: "int8"}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAPPED_BYTES = 2**30
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
    """Rows and columns that share an FP8 scale; 128 by 128 where config.json does not say."""
    size = _quantization(folder).get("weight_block_size", list(fp8.BLOCK))
    match size:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise CheckpointError(
        f"{folder / 'config.json'}: weight_block_size={size!r}, expected [rows, columns]"
    )


def group_size(folder: Path) -> int:
    """Inputs that share an INT4 scale; 64 where config.json does not say."""
    groups = _quantization(folder).get("config_groups") or {}
    found = [
        group["weights"].get("group_size")
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
        if group["weights"].get("num_bits") == 4
    ]
    match found or [integers.GROUP]:
        case [int(size), *others] if size > 0 and all(other == size for other in others):
            return size
    raise CheckpointError(
        f"{folder / 'config.json'}: 4-bit weights with group_size={found}, expected one size"
    )


def quantization_of(folder: Path) -> str | None:
    """The quant_method of a folder: ``fp8`` or ``compressed-tensors``; None if it has none.

    Raises:
        CheckpointError: it is another.
    """
    method = _quantization(folder).get("quant_method")
    if method in (None, "fp8", "compressed-tensors"):
        return None if method is None else str(method)
    raise CheckpointError(
        f"{folder / 'config.json'}: quant_method={method!r}, expected fp8 or compressed-tensors"
    )


def _quantization(folder: Path) -> dict[str, Any]:
    found = files.read_json(folder / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else {}


def opened(folder: Path) -> "Shards":
    """The tensors of a folder, read as they are asked for.

    Raises:
        CheckpointError: a file is missing or broken, or its quantization is of an unknown kind.
    """
    quantization_of(folder)
    return Shards(headers(folder), block_size(folder), group_size(folder))


class Shards:
    """Tensors by published name from open shards; a quantized weight by the name it had before."""

    def __init__(
        self, stored: Mapping[str, Stored], block: tuple[int, int], group: int = integers.GROUP
    ):
        self.stored, self.block, self.group = stored, block, group
        self.open: dict[Path, Any] = {}  # safetensors exports no type for its handle
        self.mapped = 0  # bytes read of these files

    def __contains__(self, published: str) -> bool:
        return published in self.stored or published + integers.PACKED in self.stored

    def dtype(self, published: str) -> torch.dtype:
        """What `tensor` gives: as stored, and bfloat16 for what is quantized."""
        entry = self.stored.get(published)
        return torch.bfloat16 if entry is None else FLOATS.get(entry.dtype, torch.bfloat16)

    def precision(self, published: str) -> str:
        """How it is stored: one of PRECISIONS, or the type's own name."""
        entry = self.stored.get(published)
        return "int4" if entry is None else PRECISIONS.get(entry.dtype, entry.dtype)

    def shape(self, published: str) -> tuple[int, ...]:
        """The shape of a tensor, of a quantized one before it was."""
        if published in self.stored:
            return self.stored[published].shape
        rows, columns = self.raw(published + integers.SHAPE).tolist()
        return rows, columns

    def parts(self, published: str) -> tuple[str, ...]:
        """The stored tensors that a tensor is, the scales of a quantized one too."""
        match self.precision(published):
            case "int4":
                return tuple(published + end for end in (integers.PACKED, integers.SCALE,
                                                         integers.SHAPE))  # fmt: skip
            case "int8":
                return published, published + integers.SCALE
            case "fp8":
                return published, published + names.SCALE
        return (published,)

    def weights(self) -> dict[str, tuple[str, ...]]:
        """Every tensor by the name it had before it was quantized, and its parts."""
        published = [name.removesuffix(integers.PACKED) for name in self.stored]
        found = {name: self.parts(name) for name in published if name in self}
        beside = {part for parts in found.values() for part in parts[1:]}
        return {name: parts for name, parts in found.items() if name not in beside}

    def turn_to(self, published: str) -> None:
        """Close files that a tensor does not lie in, or all once much was read from them.

        What is mapped counts as a process's memory: reading in the order of the shards, a tensor at
        a time, it stays within two shards and MAPPED_BYTES.
        """
        parts = self.parts(published)
        wanted = {self.stored[part].path for part in parts}
        if not wanted <= self.open.keys() or self.mapped > MAPPED_BYTES:
            self.close()
        self.mapped += self.num_bytes(parts)

    def num_bytes(self, parts: Sequence[str]) -> int:
        """The size of stored tensors."""
        entries = [self.stored[part] for part in parts]
        return sum(Entry(entry.dtype, entry.shape).num_bytes for entry in entries)

    def close(self) -> None:
        """Let go of the files opened so far; they open again when asked for."""
        self.open.clear()
        self.mapped = 0

    def tensor(self, published: str) -> Tensor:
        """One tensor as stored; what is quantized multiplied out."""
        entry = self.stored.get(published)
        if entry is not None and entry.dtype in FLOATS:
            return self.raw(published)
        return self.matrix(published).dequantize()

    def matrix(self, published: str) -> Matrix:
        """One matrix (O, I) as stored, its scales in float32; float16 is widened to float32."""
        if published not in self.stored:
            return self._int4(published)
        data, entry = self.raw(published), self.stored[published]
        shape = (entry.shape[0], entry.shape[1])
        match entry.dtype:
            case "BF16":
                return Matrix("bf16", shape, data)
            case "I8":
                scale = self.raw(published + integers.SCALE).float()
                return Matrix("int8", shape, data, scale, (1, shape[1]))
            case "F8_E4M3":
                scale = self.raw(published + names.SCALE).float()
                return Matrix("fp8", shape, data, scale, self.block)
        return Matrix("f32", shape, data.float())

    def _int4(self, published: str) -> Matrix:
        rows, columns = self.raw(published + integers.SHAPE).tolist()
        packed = self.stored[published + integers.PACKED]
        if packed.shape != integers.packed_shape((rows, columns)):
            raise CheckpointError(
                f"{packed.path}: {published + integers.SHAPE} is {rows} by {columns}, but "
                f"{published + integers.PACKED} is {packed.shape}; convert or copy it again"
            )
        data = self.raw(published + integers.PACKED).view(torch.uint8)
        scale = self.raw(published + integers.SCALE).float()
        return Matrix("int4", (rows, columns), data, scale, (1, self.group))

    def raw(self, published: str) -> Tensor:
        """One stored tensor under its own name."""
        path = self.stored[published].path
        if path not in self.open:
            self.open[path] = _open(path)
        tensor: Tensor = self.open[path].get_tensor(published)
        return tensor


def some(items: Sequence[str]) -> str:
    """The first items, and how many more there are."""
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
