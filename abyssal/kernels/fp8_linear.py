"""A linear layer whose three products are in FP8, and which keeps its input in FP8.

    Fprop   y  = x W^T       tiles of x        by blocks of W
    Dgrad   dx = dy W        tiles of dy       by blocks of W
    Wgrad   dW = dy^T x      columns of dy     by columns of x, in tiles of 128 tokens

DeepSeek-V3 (arXiv 2412.19437), sections 3.3.1 to 3.3.3. For the backward stay x as it was
multiplied, one byte a number and its scales, regrouped to columns when needed, and W's blocks.
The input of o_proj stays in E5M6 instead, and its scales are powers of two.

    T tokens    I input size    O output size
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.float8 import E4M3
from abyssal.kernels import fp8_e5m6
from abyssal.kernels.fp8_product import product
from abyssal.kernels.fp8_tiles import Fp8, Tiled, blocks, columns, regrouped, tiles


def fp8_linear(x: Tensor, weight: Tensor, how: Fp8, *, after_attention: bool = False) -> Tensor:
    """x (T, I) times weight (O, I) transposed -> (T, O), in the precision of x.

    The gradient of x has its precision, that of a float32 weight is float32. `after_attention` is
    for o_proj.
    """
    y: Tensor = _Linear.apply(x, weight, how, after_attention)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: Fp8, after_attention: bool) -> Tensor:
        rows = tiles(x, E4M3, how.spread, power_of_two=after_attention)
        matrix = blocks(weight, how.spread)
        exact = after_attention and how.attention_output == "e5m6"
        kept = fp8_e5m6.pack(x) if exact else rows[:2]
        ctx.save_for_backward(*kept, matrix.numbers, matrix.scale)
        ctx.how, ctx.after_attention, ctx.kind = how, after_attention, x.dtype
        return product(rows, matrix).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        *kept, numbers, scale = ctx.saved_tensors
        how: Fp8 = ctx.how
        form, spread = how.gradient_format, how.gradient_spread
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            matrix = Tiled(numbers, scale, 128)
            grad_x = product(tiles(grad, form, spread), matrix.T).to(ctx.kind)
        if ctx.needs_input_grad[1]:
            if len(kept) == 3:
                x = fp8_e5m6.unpack(fp8_e5m6.Packed(*kept))
                by_token = columns(x, E4M3, how.spread, power_of_two=True)
            else:
                by_token = regrouped(Tiled(*kept), how.spread, power_of_two=ctx.after_attention)
            grad_weight = product(columns(grad, form, spread), by_token)
        return grad_x, grad_weight, None, None
