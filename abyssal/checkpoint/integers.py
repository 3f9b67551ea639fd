"""Published INT8 and INT4 weights, named and laid out as ``compressed-tensors`` does.

    INT8   X.weight (O, I) int8            w = q * weight_scale of its row
           X.weight_scale (O, 1)
    INT4   X.weight_packed (O, I/8) int32  w = (n - 8) * weight_scale of its row and group
           X.weight_scale (O, I/G)
           X.weight_shape = [O, I]

Eight numbers n in 0..15 share an int32, the first in its lowest bits; so two share a byte, the even
one below. G inputs along a row are a group. Where I is no multiple of 8 or G, the last int32 is
filled with zero bits and the last group is short.

    O output size    I input size    G group size
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GROUP = 64
OFFSET = 8  # n = q + OFFSET

SCALE = "_scale"  # these end the name of a weight's parts
PACKED = "_packed"
SHAPE = "_shape"


def packed_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape of the int32 that hold a matrix (O, I) of INT4."""
    return shape[0], math.ceil(shape[1] / 8)


def group_shape(shape: Sequence[int], group: int = GROUP) -> tuple[int, int]:
    """The shape of the scales of a matrix (O, I) of INT4."""
    return shape[0], math.ceil(shape[1] / group)


def pack(numbers: Tensor) -> Tensor:
    """numbers (O, I) uint8 in 0..15 -> (O, I/8) int32."""
    rows, columns = numbers.shape
    filled = numbers.new_zeros(rows, 8 * math.ceil(columns / 8), dtype=torch.uint8)
    filled[:, :columns] = numbers
    return (filled[:, 0::2] | filled[:, 1::2] << 4).view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """packed (O, I/8) int32 -> the numbers (O, I) uint8 in 0..15."""
    pairs = packed.contiguous().view(torch.uint8)  # (O, I/2)
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(1)[:, :columns]


def dequantize_int8(weight: Tensor, scale: Tensor) -> Tensor:
    """weight (O, I) int8 times scale (O, 1) of its row -> (O, I) float32."""
    return weight.float().mul_(scale.float())


def dequantize_int4(numbers: Tensor, scale: Tensor, group: int = GROUP) -> Tensor:
    """numbers (O, I) uint8 in 0..15 less 8, times scale (O, I/G) of their group -> float32."""
    spread = scale.float().repeat_interleave(group, 1)[:, : numbers.shape[1]]  # (O, I)
    return spread.mul_(numbers.float().sub_(OFFSET))
