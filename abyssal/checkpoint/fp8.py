"""Published FP8 weights: e4m3 numbers and one float32 scale for each block of 128 by 128.

    w = q * scale_inv of its block

DeepSeek-V3 (arXiv 2412.19437), section 3.3.2, and README_WEIGHTS of the release. Despite its
name one multiplies by ``scale_inv``. Blocks at the lower and right border may be partial.

    O output size    I input size
"""

import torch
from torch import Tensor

from abyssal.float8 import BLOCK as BLOCK
from abyssal.float8 import scale_shape as scale_shape


def dequantize(
    weight: Tensor,
    scale_inv: Tensor,
    block: tuple[int, int] = BLOCK,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """weight (O, I) float8 times the scale of each element's block -> (O, I); a row of blocks at a
    time, which stays in the cache.
    """
    found = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    columns = weight.shape[1]
    for at, row in enumerate(scale_inv.float()):
        rows = slice(at * block[0], (at + 1) * block[0])
        found[rows] = _widened(weight[rows]).mul_(row.repeat_interleave(block[1])[:columns])
    return found


def _widened(numbers: Tensor) -> Tensor:
    """float8_e4m3fn as float32, three times as fast as torch's own cast on a CPU.

    Sign, exponent and mantissa of e4m3, shifted to where bfloat16 has them, are the number over
    2^120, subnormals too; only NaN is none there.
    """
    bits = numbers.view(torch.int8).to(torch.int16)  # the sign fills the upper byte
    size = bits & 0x7F
    if numbers.device.type != "cpu" or not numbers.numel() or int(size.amax()) == 0x7F:
        return numbers.float()
    shifted = size.bitwise_left_shift_(4).bitwise_or_(bits.bitwise_and_(-0x8000))
    return shifted.view(torch.bfloat16).float().mul_(2.0**120)
