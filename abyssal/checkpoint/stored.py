"""A matrix of a model folder as it is stored: numbers, their scales, and what they stand for.

O output size    I input size    G group size
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from abyssal.checkpoint import fp8, integers

Kind = Literal["f32", "bf16", "int8", "int4", "fp8"]


class Matrix(NamedTuple):
    """One matrix (O, I) in the precision of its file, row after row.

    f32, bf16    data (O, I) in that precision
    int8         data (O, I) int8; scale (O, 1)
    int4         data (O, 4 * ceil(I/8)) uint8: inputs 2i and 2i+1 in the low and high half of
                 byte i, 0..15 for -8..7; scale (O, ceil(I/G)), G = block[1]
    fp8          data (O, I) float8_e4m3fn; scale of blocks of `block` rows and columns

    Scales are float32 and contiguous, as is `data`.
    """

    kind: Kind
    shape: tuple[int, int]
    data: Tensor
    scale: Tensor | None = None
    block: tuple[int, int] = (1, 1)  # rows and columns that share a scale

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The matrix (O, I): what is quantized in `dtype`, all else as it is."""
        if self.scale is None:
            return self.data
        match self.kind:
            case "fp8":
                return fp8.dequantize(self.data, self.scale, self.block, dtype)
            case "int8":
                return integers.dequantize_int8(self.data, self.scale).to(dtype)
            case _:
                numbers = integers.unpack(self.data.view(torch.int32), self.shape[1])
                whole = integers.dequantize_int4(numbers, self.scale, self.block[1])
                return whole.to(dtype)
