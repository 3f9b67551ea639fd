"""FP8 to BF16 and back to the same bytes: scales that come along in a file beside the weights.

    w = bf16(q * s)        s cannot be told from w: bf16(448 * s) / 448 is not s

A folder made from FP8 weights keeps their scales in ``fp8_scales.safetensors``, which no other
program reads. On the way back a block takes its old scale only if the numbers found with it, times
it, are its weights to the bit; blocks that have changed since get new ones. With |s| within NORMAL
the numbers found are those that were there: neighbors of e4m3 are at least a 16th apart, and w is
off by a 512th at most. Outside, products of different numbers may be the same weight: those weights
come along whole, as they were.

    O output size    I input size
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from abyssal.checkpoint import fp8, names
from abyssal.checkpoint.shard_file import Entry
from abyssal.checkpoint.shards import FLOATS, Shards
from abyssal.errors import CheckpointError
from abyssal.quant.weight_only import Quantized, encode_fp8, scale_fp8

FILE = "fp8_scales.safetensors"
NORMAL = (2.0**-100, 2.0**100)
_CONFIG = "quantization_config"


def recode(
    weight: Tensor,
    scale: Tensor,
    block: tuple[int, int] = fp8.BLOCK,
    *,
    numbers: Tensor | None = None,
    power_of_two: bool = False,
) -> Quantized:
    """weight (O, I) -> float8 (O, I) and the scales of its blocks: `scale`, where that gives them.

    `numbers` are those that the weights came from, where they are known.
    """
    found = numbers.clone() if numbers is not None else encode_fp8(weight, scale, block)
    same = _blocks_of_equal_bits(fp8.dequantize(found, scale, block, weight.dtype), weight, block)
    if same.all():
        return Quantized(found, scale)
    new = scale_fp8(weight, block, power_of_two=power_of_two).to(scale.dtype)
    scale = torch.where(same, scale, new)
    kept = same.repeat_interleave(block[0], 0)[: len(weight)]
    kept = kept.repeat_interleave(block[1], 1)[:, : weight.shape[1]]
    again = encode_fp8(weight, scale, block)
    chosen = torch.where(kept, found.view(torch.uint8), again.view(torch.uint8))
    return Quantized(chosen.view(torch.float8_e4m3fn), scale)


def is_ambiguous(scale: Tensor) -> bool:
    """Whether weights with these scales may not tell which numbers they came from."""
    size = scale.float().abs()
    return bool(((size < NORMAL[0]) | (size > NORMAL[1])).any())


def _blocks_of_equal_bits(one: Tensor, other: Tensor, block: tuple[int, int]) -> Tensor:
    """Two matrices (O, I) -> for each block whether all of it is the same, the sign of 0 too."""
    kind = torch.int32 if one.element_size() == 4 else torch.int16
    one, other = one.view(kind), other.view(kind)
    if torch.equal(one, other):
        return torch.ones(fp8.scale_shape(one.shape, block), dtype=torch.bool)
    same = [
        torch.stack([part.all() for part in row.split(block[1], 1)])
        for row in (one == other).split(block[0])
    ]
    return torch.stack(same)


class Origin:
    """The FP8 scales that a folder's weights came with."""

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self._file: Any  # safetensors exports no type for its handle
        try:
            self._file = safe_open(self.path, framework="pt")
            config = json.loads((self._file.metadata() or {})[_CONFIG])
            self.block: tuple[int, int] = tuple(config.get("weight_block_size", fp8.BLOCK))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise CheckpointError(
                f"{self.path} cannot be read ({problem}); copy it again, or remove it to have all "
                "scales made anew"
            ) from None
        self.config: dict[str, object] = config
        self.names = set(self._file.keys())

    @property
    def power_of_two(self) -> bool:
        """Whether scales are powers of two, as those of V3.1."""
        return self.config.get("scale_fmt") == "ue8m0"

    def entries(self, published: str, shape: Sequence[int]) -> dict[str, Entry]:
        """What a weight (O, I) is stored as, before it is made."""
        name = published + names.SCALE
        scale = Entry("F32", fp8.scale_shape(shape, self.block))
        if name in self.names:
            piece = self._file.get_slice(name)
            found = Entry(piece.get_dtype(), tuple(piece.get_shape()))
            if found.shape != scale.shape or found.dtype not in FLOATS:
                raise CheckpointError(
                    f"{self.path}: {name} is {found.dtype} {found.shape}, expected scales "
                    f"{scale.shape}; remove the file to have them made anew"
                )
            scale = found
        return {published: Entry("F8_E4M3", tuple(shape)), name: scale}

    def encode(self, published: str, weight: Tensor) -> Quantized:
        """A weight (O, I) as it was in FP8; blocks that have changed, or never were, anew."""
        if published + names.SCALE not in self.names:
            scale = scale_fp8(weight, self.block, power_of_two=self.power_of_two)
            return Quantized(encode_fp8(weight, scale, self.block), scale)
        numbers = self._file.get_tensor(published) if published in self.names else None
        scale = self._file.get_tensor(published + names.SCALE)
        return recode(weight, scale, self.block, numbers=numbers, power_of_two=self.power_of_two)


def origin_of(folder: Path) -> Origin | None:
    """What a folder keeps of FP8 weights it was made from, if anything."""
    return Origin(folder) if (folder / FILE).is_file() else None


def to_keep(opened: Shards) -> dict[str, Entry]:
    """The stored tensors of an FP8 folder that its way back needs."""
    kept: dict[str, Entry] = {}
    for published, parts in opened.weights().items():
        if opened.precision(published) != "fp8":
            continue
        for part in parts if is_ambiguous(opened.raw(parts[1])) else parts[1:]:
            kept[part] = Entry(opened.stored[part].dtype, opened.stored[part].shape)
    return kept


def metadata(quantization_config: object) -> dict[str, str]:
    """What the file of scales says of itself."""
    return {"format": "pt", _CONFIG: json.dumps(quantization_config)}
