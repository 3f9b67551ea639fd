"""SwiGLU's middle: silu(gate) * up, on the two halves of one projection (Shazeer, 2020).

``reference`` is the definition. ``swiglu`` computes the same; its backward recomputes the sigmoid
instead of keeping it, as the report recomputes SwiGLU (section 3.3.3).

    F intermediate size
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def reference(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of gate_up (..., 2F) -> (..., F)."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of gate_up (..., 2F) -> (..., F)."""
    y: Tensor = _SwiGLU.apply(gate_up)
    return y


def swiglu_forward(gate_up: Tensor) -> Tensor:
    """`reference` without a graph."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate.contiguous()).mul_(up)  # silu is three times as slow on a strided half


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    """The gradient of gate_up (..., 2F) given that of silu(gate) * up (..., F)."""
    gate, up = gate_up.chunk(2, -1)
    out = torch.empty_like(gate_up)
    grad_gate, grad_up = out.chunk(2, -1)
    gate = gate.contiguous()
    torch.mul(grad, F.silu(gate), out=grad_up)
    grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return swiglu_forward(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return swiglu_backward(gate_up, grad)
