"""Rotary position embedding applied: pairs (x0, x1), (x2, x3), ... turn by an angle each (Su et
al., 2021).

    a' = a cos - b sin,   b' = b cos + a sin

The released weights store pairs side by side; the result holds all a' first and then all b'.
Queries and keys are permuted alike, so their products are those of the interleaved form.

    T tokens    H heads    R rotary size
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (T, H, R) by the angles whose cos and sin are (T, R/2)."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (T, H, R) by the angles whose cos and sin are (T, R/2)."""
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return reference(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = (t.to(grad.dtype).unsqueeze(1) for t in ctx.saved_tensors)
        a, b = grad.chunk(2, -1)
        return torch.stack([a * cos + b * sin, b * cos - a * sin], -1).flatten(-2), None, None
