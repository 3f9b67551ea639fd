"""Numbers of 12 bits, E5M6: what the input of the Linear after attention is kept in.

Attention's backward reuses these activations, which makes them sensitive (DeepSeek-V3, section
3.3.3); the report names the format and that its scales are powers of two, so that going from tiles
of 1 by 128 to 128 by 1 costs nothing further. Our reading: a half-precision number whose mantissa
is rounded to 6 bits, subnormals included, of at most 65,024. A number is a byte and half a byte.

    R rows    C columns    B tiles of a row
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.float8 import scale_of
from abyssal.kernels.fp8_tiles import TILE, amax_of_tiles

LARGEST = 65024.0  # (2 - 2^-6) * 2^15
_LEAST_NORMAL = 2.0**-14
_MAGIC = 12.0  # 1.5 * 2^3: adding it leaves the bits from 2^-20 on, which subnormals have


class Packed(NamedTuple):
    """A matrix in E5M6."""

    upper: Tensor  # (R, C) uint8: sign, exponent, 2 bits of mantissa
    lower: Tensor  # (R, C/2) uint8, rounded up: 4 bits of mantissa of two neighbors
    scale: Tensor  # (R, B) float32, powers of two

    @property
    def num_bytes(self) -> int:
        """What it takes to keep this."""
        return sum(t.numel() * t.element_size() for t in self)


def rounded(x: Tensor) -> Tensor:
    """x float32 to the nearest E5M6, ties to even, in half precision, which holds it exactly."""
    x = x.clamp(-LARGEST, LARGEST)
    number = x.view(torch.int32)
    normal = (number + 0xFFFF + ((number >> 17) & 1)) & -0x20000
    small = (x + _MAGIC) - _MAGIC
    return torch.where(x.abs() < _LEAST_NORMAL, small, normal.view(torch.float32)).half()


def pack(x: Tensor) -> Packed:
    """x (R, C) -> its numbers, with a scale for each tile of 1 by 128."""
    width = x.shape[1]
    scale = scale_of(amax_of_tiles(x), LARGEST, power_of_two=True)
    half = rounded(x.float() / scale.repeat_interleave(TILE, 1)[:, :width]).view(torch.int16)
    low = F.pad((half >> 4) & 15, (0, width % 2)).to(torch.uint8)
    lower = low[:, ::2] << 4 | low[:, 1::2]
    return Packed(((half >> 8) & 0xFF).to(torch.uint8), lower, scale)


def unpack(x: Packed) -> Tensor:
    """The numbers (R, C) again, float32."""
    width = x.upper.shape[1]
    low = torch.stack([x.lower >> 4, x.lower & 15], -1).flatten(1)[:, :width]
    half = (x.upper.to(torch.int16) << 8) | (low.to(torch.int16) << 4)
    return half.view(torch.float16).float() * x.scale.repeat_interleave(TILE, 1)[:, :width]
