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

from abyssal.kernels.rows import is_bf16, twin


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
    function = twin("swiglu", gate_up)
    if function is not None:
        gate_up = gate_up.contiguous()
        out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        rows, width = _sizes(out)
        function(gate_up, out, rows, width, is_bf16(out), torch.get_num_threads())
        return out
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate.contiguous()).mul_(up)  # silu is three times as slow on a strided half


def swiglu_backward(gate_up: Tensor, grad: Tensor) -> Tensor:
    """The gradient of gate_up (..., 2F) given that of silu(gate) * up (..., F)."""
    function = twin("swiglu_backward", gate_up, grad)
    if function is not None:
        gate_up, grad = gate_up.contiguous(), grad.contiguous()
        out = torch.empty_like(gate_up)
        rows, width = _sizes(grad)
        function(gate_up, grad, out, rows, width, is_bf16(out), torch.get_num_threads())
        return out
    gate, up = gate_up.chunk(2, -1)
    out = torch.empty_like(gate_up)
    grad_gate, grad_up = out.chunk(2, -1)
    gate = gate.contiguous()
    torch.mul(grad, F.silu(gate), out=grad_up)
    grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
    return out


def _sizes(x: Tensor) -> tuple[int, int]:
    """How many rows x (..., F) has, and F."""
    width = x.shape[-1]
    return x.numel() // max(1, width), width


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
