"""Root-mean-square norm: y = x / sqrt(mean(x^2) + eps) * weight  (Zhang & Sennrich, 2019).

``reference`` is the definition. ``rms_norm`` computes the same with a backward of its own, which
keeps one number a row instead of four float32 copies of x. ``add_rms_norm`` adds first, as between
two blocks, and returns both; so x is read once, and its two gradients are added on the way.

    T rows    D size of the last dimension
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.kernels.rows import as_rows, is_bf16, twin

BLOCK = 32  # rows that rows.cpp sums into one part of the gain's gradient


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale the last dimension of x (..., D) to unit mean square; float32 inside, x.dtype out."""
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * x32.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale the last dimension of x (..., D) to unit mean square; float32 inside, x.dtype out."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, both (..., D), and its norm."""
    total, normed = _AddRMSNorm.apply(x, y, weight, eps)
    return total, normed


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x (..., D), and what each row was multiplied by (..., 1), float32."""
    function = twin("rms_norm", x, weight)
    if function is None:
        x32 = x.float()
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_()
        scale = scale.div_(x.shape[-1]).add_(eps).rsqrt_()
        return (x32 * scale).to(x.dtype) * weight, scale
    y = x.new_empty(x.shape)
    scale = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    rows, stride = as_rows(x)
    T, D = rows.shape
    function(
        rows, stride, None, None, weight.contiguous(), eps, y, scale, T, D, is_bf16(x),
        torch.get_num_threads(),
    )  # fmt: skip
    return y, scale


def _backward(
    x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor, grad_x: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of x, to which `grad_x` is added, and of the gain, given that of the norm."""
    others = (grad,) if grad_x is None else (grad, grad_x)
    function = twin("rms_norm_backward", x, weight, *others)
    if function is None:
        unit = x.float() * scale  # (..., D)
        grad_weight = (unit * grad).flatten(0, -2).sum(0).to(weight.dtype)
        grad32 = grad * weight.float()
        along = torch.linalg.vecdot(grad32, unit).div_(x.shape[-1]).unsqueeze(-1)
        own = grad32.addcmul_(unit, along, value=-1).mul_(scale)
        return (own if grad_x is None else own.add_(grad_x)).to(x.dtype), grad_weight
    rows, stride = as_rows(x)
    T, D = rows.shape
    out, grad_weight = x.new_empty(x.shape), torch.empty_like(weight)
    partial = x.new_empty((T + BLOCK - 1) // BLOCK, D, dtype=torch.float32)
    function(
        rows, stride, weight.contiguous(), scale, grad.contiguous(),
        None if grad_x is None else grad_x.contiguous(), out, partial, grad_weight, T, D,
        is_bf16(x), torch.get_num_threads(),
    )  # fmt: skip
    return out, grad_weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = _forward(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        return *_backward(x, weight, scale, grad, None), None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        function = twin("rms_norm", x, y, weight)
        if function is None or x.shape != y.shape:
            total = x + y
            normed, scale = _forward(total, weight, eps)
        else:
            total, normed = x.new_empty(x.shape), x.new_empty(x.shape)
            scale = x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
            rows, stride = as_rows(x)
            T, D = rows.shape
            function(
                rows, stride, y.contiguous(), total, weight.contiguous(), eps, normed, scale, T, D,
                is_bf16(x), torch.get_num_threads(),
            )  # fmt: skip
        ctx.save_for_backward(total, weight, scale)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        total, weight, scale = ctx.saved_tensors
        grad_x, grad_weight = _backward(total, weight, scale, grad, grad_total)
        return grad_x, grad_x, grad_weight, None
