"""Root-mean-square norm: y = x / sqrt(mean(x^2) + eps) * weight  (Zhang & Sennrich, 2019).

``reference`` is the definition. ``rms_norm`` computes the same with a backward of its own, which
keeps one number a row instead of four float32 copies of x.

    D size of the last dimension
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale the last dimension of x (..., D) to unit mean square; float32 inside, x.dtype out."""
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * x32.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale the last dimension of x (..., D) to unit mean square; float32 inside, x.dtype out."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_()  # (..., 1)
        scale = scale.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (x32 * scale).to(x.dtype) * weight
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        unit = x.float() * scale  # (..., D)
        grad_weight = (unit * grad).flatten(0, -2).sum(0).to(weight.dtype)
        grad32 = grad * weight.float()
        along = torch.linalg.vecdot(grad32, unit).div_(x.shape[-1]).unsqueeze(-1)
        return grad32.addcmul_(unit, along, value=-1).mul_(scale).to(x.dtype), grad_weight, None
