"""FP8 numbers and their scales: what checkpoints, conversions and training share.

    s = max |x| / largest of a block        q = fp8(x / s)        x' = q s

DeepSeek-V3 (arXiv 2412.19437), section 3.3.2. Weights have a scale for each block of 128 by 128;
blocks at the lower and right border may be partial, which is what filling them up with zeros
would give. PyTorch casts numbers beyond the largest as its version likes, so they are cut first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = (128, 128)  # outputs and inputs of a weight that share a scale


class Format(NamedTuple):
    """A kind of 8-bit numbers."""

    dtype: torch.dtype
    largest: float


E4M3 = Format(torch.float8_e4m3fn, 448.0)  # 3 bits of mantissa
E5M2 = Format(torch.float8_e5m2, 57344.0)  # 2


def scale_shape(shape: Sequence[int], block: tuple[int, int] = BLOCK) -> tuple[int, int]:
    """The shape of the scales of a matrix (O, I): blocks down, blocks across."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def scale_of(amax: Tensor, largest: float = E4M3.largest, *, power_of_two: bool = False) -> Tensor:
    """The float32 scales of blocks whose largest magnitudes are amax; 1 for zeros only.

    Powers of two are rounded up, so that nothing is cut. NaN stays and so comes out.
    """
    scale = amax.float() / largest
    if power_of_two:
        up = (scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000  # carries, unless it is one already
        scale = torch.where(scale.isfinite(), up.view(torch.float32), scale)
    return torch.where(scale == 0, 1.0, scale)


def encode(x: Tensor, scale: Tensor, form: Format = E4M3) -> Tensor:
    """x / scale to the nearest number of the format, ties to even; scale broadcasts."""
    return (x.float() / scale).clamp_(-form.largest, form.largest).to(form.dtype)


def quantize(
    x: Tensor,
    block: tuple[int, int] = BLOCK,
    form: Format = E4M3,
    *,
    power_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """x (..., O, I) -> numbers (..., O, I) and the float32 scales of their blocks."""
    *_, rows, columns = x.shape
    down, across = scale_shape((rows, columns), block)
    missing = (0, across * block[1] - columns, 0, down * block[0] - rows)
    filled = F.pad(x.float(), missing).unflatten(-1, (across, block[1]))
    filled = filled.unflatten(-3, (down, block[0]))  # (..., down, rows, across, columns of a block)
    scale = scale_of(filled.abs().amax((-3, -1)), form.largest, power_of_two=power_of_two)
    numbers = encode(filled, scale[..., :, None, :, None], form).flatten(-2).flatten(-3, -2)
    return numbers[..., :rows, :columns].contiguous(), scale
