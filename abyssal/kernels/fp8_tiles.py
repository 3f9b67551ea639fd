"""Matrices in FP8 with a scale for each tile of 128 numbers, as FP8 training has them.

    activations, gradients     tiles of 1 by 128 along the inner dimension of a product
    weights                    blocks of 128 by 128
    for the weights' gradient  tiles of 128 by 1: the columns of a matrix become rows

DeepSeek-V3 (arXiv 2412.19437), sections 3.3.1 and 3.3.2. Scales are max |x| / 448 of the numbers at
hand, in float32, or powers of two. The last tile of a row may be partial (the tiny model is 160
wide): it gets the scale of the numbers it has, which is what filling it up with zeros would give.

What is here has native twins (fp8.cpp) for the CPU and Triton's (fp8_triton.py) for a GPU; the
scales themselves are always torch's, and the bytes are the same everywhere.

    R rows    C columns    B tiles of a row
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.float8 import E4M3, E5M2, Format, encode, scale_of
from abyssal.kernels.registry import Native
from abyssal.kernels.rows import is_bf16, twin

TILE = 128
Spread = Literal["tile", "block", "tensor"]  # what shares a scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8:
    """How FP8 training does its products. The defaults are the paper's; the others are what it
    advises against, to be measured.
    """

    gradients: Literal["e4m3", "e5m2"] = "e4m3"  # of activations
    gradient_blocks: Literal["tile", "block"] = "tile"  # 1 by 128, or 128 by 128 as weights have it
    scales: Literal["tile", "tensor"] = "tile"  # or one for the whole of each tensor
    attention_output: Literal["e5m6", "e4m3"] = "e5m6"  # what the input of o_proj is kept in

    @property
    def gradient_format(self) -> Format:
        """Of activation gradients."""
        return E4M3 if self.gradients == "e4m3" else E5M2

    @property
    def spread(self) -> Spread:
        """What shares a scale in activations and weights."""
        return self.scales

    @property
    def gradient_spread(self) -> Spread:
        """What shares a scale in activation gradients."""
        return "tensor" if self.scales == "tensor" else self.gradient_blocks


class Tiled(NamedTuple):
    """A matrix in FP8, or a stack of them."""

    numbers: Tensor  # (..., R, C) float8
    scale: Tensor  # (..., R, B) float32; of weights (..., R/128, B), rounded up
    rows: int = 1  # that share a scale: 1, or 128 of weights

    @property
    def num_bytes(self) -> int:
        """What it takes to keep this."""
        return sum(t.numel() * t.element_size() for t in (self.numbers, self.scale))

    def at(self, *where: int | slice) -> "Tiled":
        """Some rows, or one matrix of a stack."""
        return Tiled(self.numbers[where], self.scale[where], self.rows)

    @property
    def T(self) -> "Tiled":
        """Weights (O, I) as (I, O): their blocks stay what they are."""
        assert self.rows == TILE, "tiles of rows are no tiles of columns"
        numbers = self.numbers.view(torch.uint8).mT.contiguous().view(self.numbers.dtype)
        return Tiled(numbers, self.scale.mT.contiguous(), TILE)


def tiles(
    x: Tensor, form: Format = E4M3, spread: Spread = "tile", *, power_of_two: bool = False
) -> Tiled:
    """x (R, C), BF16 or float32 -> its rows in tiles of 1 by 128.

    With a spread of "block" 128 rows share a scale, with "tensor" all rows and tiles.
    """
    scale = _scale(amax_of_tiles(x), form, spread, power_of_two)
    return Tiled(_encode(x, scale, form), scale)


def columns(
    x: Tensor, form: Format = E4M3, spread: Spread = "tile", *, power_of_two: bool = False
) -> Tiled:
    """x (R, C) -> (C, R): its columns as rows, in what were tiles of 128 by 1."""
    function = _twin("fp8_amax_columns", x)
    if function is None:
        return tiles(x.mT.contiguous(), form, spread, power_of_two=power_of_two)
    rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    amax = torch.empty(width, -(-rows // TILE))
    threads = torch.get_num_threads()
    function(x, x.stride(0), rows, width, is_bf16(x), amax, threads)
    scale = _scale(amax, form, spread, power_of_two)
    numbers = torch.empty(width, rows, dtype=form.dtype)
    run = _twin("fp8_encode_columns", x)
    assert run is not None
    run(x, x.stride(0), rows, width, is_bf16(x), scale, _code(form), numbers, threads)
    return Tiled(numbers, scale)


def regrouped(x: Tiled, spread: Spread = "tile", *, power_of_two: bool = False) -> Tiled:
    """Tiles of 1 by 128 -> those of 128 by 1: read, turned, and quantized once more (3.3.2)."""
    return columns(decode(x), spread=spread, power_of_two=power_of_two)


def blocks(weight: Tensor, spread: Spread = "tile") -> Tiled:
    """weight (..., O, I) -> its blocks of 128 by 128; what `float8.quantize` gives."""
    O, I = weight.shape[-2:]  # noqa: E741
    down = -(-O // TILE)
    amax = amax_of_tiles(weight.reshape(-1, I)).unflatten(0, (-1, O))  # (N, O, B)
    amax = F.pad(amax, (0, 0, 0, down * TILE - O)).unflatten(1, (down, TILE)).amax(2)
    if spread == "tensor":  # of each matrix of a stack its own
        amax = amax.amax((1, 2), keepdim=True).expand_as(amax)
    scale = scale_of(amax)  # (N, O/128, B)
    each = scale.repeat_interleave(TILE, 1)[:, :O].reshape(-1, scale.shape[-1])
    numbers = _encode(weight.reshape(-1, I), each, E4M3).view(weight.shape)
    return Tiled(numbers, scale.reshape(*weight.shape[:-2], *scale.shape[1:]), TILE)


def decode(x: Tiled) -> Tensor:
    """numbers (R, C) times their scales -> (R, C) float32."""
    scale = x.scale.repeat_interleave(TILE, 0)[: len(x.numbers)] if x.rows == TILE else x.scale
    function = _twin("fp8_decode", x.scale)
    if function is None or not x.numbers.is_contiguous():
        wide = scale.repeat_interleave(TILE, 1)[:, : x.numbers.shape[1]]
        return x.numbers.float() * wide
    out = torch.empty(x.numbers.shape)
    rows, width = x.numbers.shape
    code = int(x.numbers.dtype == E5M2.dtype)
    function(x.numbers, scale.contiguous(), rows, width, code, out, torch.get_num_threads())
    return out


def _scale(amax: Tensor, form: Format, spread: Spread, power_of_two: bool) -> Tensor:
    """amax (R, B) -> the scales (R, B)."""
    if spread == "block":
        down = -(-len(amax) // TILE)
        filled = F.pad(amax, (0, 0, 0, down * TILE - len(amax)))
        most = filled.unflatten(0, (down, TILE)).amax(1)
        amax = most.repeat_interleave(TILE, 0)[: len(amax)]
    elif spread == "tensor" and amax.numel():
        amax = amax.amax().expand(amax.shape)
    return scale_of(amax, form.largest, power_of_two=power_of_two).contiguous()


def amax_of_tiles(x: Tensor) -> Tensor:
    """The largest magnitude of each tile of x (R, C) -> (R, B) float32."""
    rows, width = x.shape
    if x.device.type == "cuda":
        from abyssal.kernels import fp8_triton

        return fp8_triton.amax(x)
    function = _twin("fp8_amax", x)
    if function is None:
        filled = F.pad(x, (0, -width % TILE)).unflatten(1, (-1, TILE))
        found: Tensor = filled.abs().amax(2).float()
        return found
    x = x if x.stride(1) == 1 else x.contiguous()
    amax = torch.empty(rows, -(-width // TILE))
    function(x, x.stride(0), rows, width, is_bf16(x), amax, torch.get_num_threads())
    return amax


def _encode(x: Tensor, scale: Tensor, form: Format) -> Tensor:
    """x (R, C) and the scales of its tiles (R, B) -> numbers (R, C)."""
    rows, width = x.shape
    if x.device.type == "cuda":
        from abyssal.kernels import fp8_triton

        return fp8_triton.encode(x, scale.contiguous(), form)
    function = _twin("fp8_encode", x)
    if function is None:
        return encode(x, scale.repeat_interleave(TILE, 1)[:, :width], form)
    x = x if x.stride(1) == 1 else x.contiguous()
    numbers = torch.empty(rows, width, dtype=form.dtype)
    where = (x, x.stride(0), rows, width, is_bf16(x), scale.contiguous(), _code(form), numbers)
    function(*where, torch.get_num_threads())
    return numbers


def _twin(name: str, x: Tensor) -> Native | None:
    return twin(name, x) if x.numel() else None


def _code(form: Format) -> int:
    return int(form == E5M2)
