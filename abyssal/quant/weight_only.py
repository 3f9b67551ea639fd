"""Weights in 8 or 4 bits, and the arithmetic on them: the definition of what the fast kernels do.

    INT8   q = round(w / s) in -127..127    s = max |w| / 127 of the row
    INT4   n = round(w / s) + 8 in 0..15    s of each group of 64 inputs, searched
    FP8    q = e4m3(w / s)                  s = max |w| / 448 of each block of 128 by 128

    W8A8, W4A8    y = s_x * sum over groups of s * (q_x . q)    q_x as INT8, its scale per token

Symmetric throughout: zero stays zero, and no offset has to be multiplied in. The scales of INT4 are
rounded to bfloat16, as they are stored. FP8 is section 3.3.2 of DeepSeek-V3 (arXiv 2412.19437).

    O output size    I input size    G group size    T tokens
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal import float8
from abyssal.checkpoint import fp8, integers
from abyssal.checkpoint.integers import GROUP, OFFSET
from abyssal.checkpoint.integers import dequantize_int4 as dequantize_int4  # all of it in one place
from abyssal.checkpoint.integers import dequantize_int8 as dequantize_int8

# Scales tried for a group, in units of max |w| / 8: from one that reaches the largest value on the
# side with 7 steps to one that clips a third of the range. On normal numbers the relative error is
# 0.095 with these, 0.095 with twice as many and 0.108 with the first alone.
FACTORS = torch.linspace(8 / 7, 0.65, 12).tolist()
_AT_ONCE = 2**17  # numbers of a matrix at once: in float32 half a MiB, which stays in the cache


class Quantized(NamedTuple):
    """Numbers and the scales to multiply them with."""

    numbers: Tensor
    scale: Tensor


def quantize_int8(weight: Tensor) -> Quantized:
    """weight (O, I) -> int8 (O, I) and float32 (O, 1)."""
    numbers = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight), 1)
    for rows in _chunks(weight):
        numbers[rows], scale[rows] = quantize_activation_int8(weight[rows])
    return Quantized(numbers, scale)


def quantize_activation_int8(x: Tensor) -> Quantized:
    """x (T, I) -> int8 (T, I) in -127..127 and float32 (T, 1): the largest of a token is 127."""
    x = x.float()
    scale = _nonzero(x.abs().amax(-1, keepdim=True) / 127)
    return Quantized((x / scale).round_().clamp_(-127, 127).to(torch.int8), scale)


def quantize_int4(weight: Tensor, group: int = GROUP) -> Quantized:
    """weight (O, I) -> uint8 (O, I) in 0..15 and bfloat16 (O, I/G), the last group perhaps short.

    Of the scales that FACTORS give a group, the one with the least squared error.
    """
    numbers = torch.empty(weight.shape, dtype=torch.uint8)
    scale = torch.empty(integers.group_shape(weight.shape, group), dtype=torch.bfloat16)
    for rows in _chunks(weight):
        numbers[rows], scale[rows] = _search(weight[rows].float(), group)
    return Quantized(numbers, scale)


def quantize_fp8(weight: Tensor, block: tuple[int, int] = fp8.BLOCK) -> Quantized:
    """weight (O, I) -> float8_e4m3fn (O, I) and float32 scales of its blocks."""
    numbers = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scale = torch.empty(fp8.scale_shape(weight.shape, block))
    for i, rows in enumerate(weight.split(block[0])):  # one row of blocks in float32 at a time
        found = float8.quantize(rows, block)
        numbers[i * block[0] :][: len(rows)], scale[i : i + 1] = found
    return Quantized(numbers, scale)


def scale_fp8(
    weight: Tensor, block: tuple[int, int] = fp8.BLOCK, *, power_of_two: bool = False
) -> Tensor:
    """weight (O, I) -> float32 scales of its blocks: the largest number of a block is 448.

    With `power_of_two`, as V3.1 has them (``scale_fmt`` "ue8m0"): the next one above.
    """
    rows = weight.split(block[0])  # one row of blocks in float32 at a time
    amax = [_filled(part.float(), block[1]).abs().amax((0, 2)) for part in rows]
    return float8.scale_of(torch.stack(amax), power_of_two=power_of_two)


def encode_fp8(weight: Tensor, scale: Tensor, block: tuple[int, int] = fp8.BLOCK) -> Tensor:
    """weight (O, I) in given scales of its blocks -> float8_e4m3fn (O, I)."""
    numbers = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i, rows in enumerate(weight.split(block[0])):
        filled = _filled(rows.float(), block[1])  # (rows, across, columns of a block)
        found = float8.encode(filled, _nonzero(scale[i].float())[:, None]).flatten(1)
        numbers[i * block[0] :][: len(rows)] = found[:, : weight.shape[1]]
    return numbers


def linear_w8a8(x: Tensor, numbers: Tensor, scale: Tensor) -> Tensor:
    """x (T, I) times an INT8 matrix (O, I), both in integers -> (T, O) float32."""
    q, s = quantize_activation_int8(x)
    return _exact(q, numbers) * scale.float().T * s


def linear_w4a8(x: Tensor, numbers: Tensor, scale: Tensor, group: int = GROUP) -> Tensor:
    """x (T, I) times an INT4 matrix (O, I), in integers within a group -> (T, O) float32."""
    q, s = quantize_activation_int8(x)
    signed = numbers.to(torch.int8) - OFFSET
    y = torch.zeros(len(x), len(numbers))
    parts = zip(q.split(group, 1), signed.split(group, 1), scale.float().T, strict=True)
    for q_part, w_part, s_part in parts:
        y += _exact(q_part, w_part) * s_part
    return y * s


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    """The integer product x @ weight.T, then rounded to float32."""
    return F.linear(x.double(), weight.double()).float()


def _search(weight: Tensor, group: int) -> Quantized:
    """quantize_int4 of a few rows in float32."""
    w = _filled(weight, group)  # (O, I/G, G); zeros cost nothing at any scale
    top = w.abs().amax(-1, keepdim=True)  # (O, I/G, 1)
    best = torch.full_like(top, math.inf)
    scale = torch.ones_like(top)
    for factor in FACTORS:
        tried = _nonzero((top * (factor / 8)).bfloat16().float())
        error = (w / tried).round_().clamp_(-8, 7).mul_(tried).sub_(w).square_()
        cost = error.sum(-1, keepdim=True)
        better = cost < best
        best = torch.where(better, cost, best)
        scale = torch.where(better, tried, scale)
    numbers = (w / scale).round_().clamp_(-8, 7).add_(OFFSET).to(torch.uint8).flatten(1)
    return Quantized(numbers[:, : weight.shape[1]], scale.squeeze(-1).bfloat16())


def _filled(weight: Tensor, size: int) -> Tensor:
    """weight (O, I) -> (O, I/size, size), zeros behind."""
    filled: Tensor = F.pad(weight, (0, -weight.shape[1] % size)).unflatten(1, (-1, size))
    return filled


def _nonzero(scale: Tensor) -> Tensor:
    """Scales, 1 in place of those of zeros only; NaN stays and so comes out."""
    return torch.where(scale == 0, 1.0, scale)


def _chunks(weight: Tensor) -> list[slice]:
    """Rows to work on together."""
    count = max(_AT_ONCE // max(weight.shape[1], 1), 1)
    return [slice(at, at + count) for at in range(0, len(weight), count)]
