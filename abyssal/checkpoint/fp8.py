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
        found[rows] = weight[rows].float().mul_(row.repeat_interleave(block[1])[:columns])
    return found
