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

from abyssal.kernels.rows import is_bf16, twin


def reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (T, H, R) by the angles whose cos and sin are (T, R/2)."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (T, H, R) by the angles whose cos and sin are (T, R/2)."""
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


def _native(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor | None:
    """x (T, H, R) turned, or turned back, by the native twin if that fits."""
    function = twin("rotate", x)
    if function is None or cos.dtype != torch.float32 or sin.dtype != torch.float32:
        return None
    x = x if x.stride(-1) == 1 else x.contiguous()
    T, H, R = x.shape
    y = x.new_empty(x.shape)
    function(
        x, x.stride(0), x.stride(1), cos.contiguous(), sin.contiguous(), y, T, H, R // 2, int(back),
        is_bf16(x), torch.get_num_threads(),
    )  # fmt: skip
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        y = _native(x, cos, sin, back=False)
        return reference(x, cos, sin) if y is None else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        native = _native(grad, cos, sin, back=True)
        if native is not None:
            return native, None, None
        cos, sin = (t.to(grad.dtype).unsqueeze(1) for t in (cos, sin))
        a, b = grad.chunk(2, -1)
        return torch.stack([a * cos + b * sin, b * cos - a * sin], -1).flatten(-2), None, None
