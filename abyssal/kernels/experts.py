"""Routed experts: tokens sorted by expert, one SwiGLU per expert, and back.

    y_t = sum over chosen k of weight_tk * down_e( silu(gate_e x_t) * (up_e x_t) )        eq. 12
    with e = experts_tk

DeepSeek-V3 (arXiv 2412.19437), section 2.1.2. ``reference`` is the definition, ``routed_experts``
the fast version: in BF16 on a CPU its native twin (experts*.cpp), else sorted_experts.py.

    T tokens    D hidden_size    E experts    K experts per token    F expert width
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.kernels.registry import native
from abyssal.kernels.sorted_experts import grouped_experts, sorted_experts
from abyssal.kernels.swiglu import swiglu


def reference(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x (T, D), experts and weights (T, K), gate_up (E, 2F, D), down (E, D, F) -> (T, D)."""
    out = torch.zeros_like(x)
    for e in range(len(gate_up)):
        token, choice = (experts == e).nonzero(as_tuple=True)
        y = swiglu(x[token] @ gate_up[e].T) @ down[e].T
        out = out.index_add(0, token, y * weights[token, choice, None].to(x.dtype))
    return out


def routed_experts(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, keep: bool = True
) -> Tensor:
    """`reference`, each sum rounded once; `keep` the hidden rows (T*K, 2F) for the backward.

    Raises:
        IndexError: an expert is not one of E.
    """
    if _fits_grouped(x, gate_up, down):
        return grouped_experts(x, experts, weights, gate_up, down)
    if not _fits_native(x, experts, weights, gate_up, down):
        return sorted_experts(x, experts, weights, gate_up, down)
    keep = keep and torch.is_grad_enabled()
    y: Tensor = _RoutedExperts.apply(x, experts, weights, gate_up, down, keep)
    return y


def _fits_grouped(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    low = (x, gate_up, down)
    return (
        len(x) > 0
        and all(t.dtype == torch.bfloat16 and t.device.type == "cuda" for t in low)
        and all(t.is_contiguous() and t.shape[-1] % 8 == 0 for t in (gate_up, down))  # 16 bytes
    )


def _fits_native(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> bool:
    low, matrices = (x, gate_up, down), (gate_up, down)
    return (
        experts.numel() > 0
        and all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in low)
        and all(t.is_contiguous() and t.numel() > 0 for t in matrices)
        and experts.dtype == torch.int64
        and weights.dtype == torch.float32
        and native("experts_forward") is not None
    )


class _RoutedExperts(torch.autograd.Function):
    """The native twin: BF16 between two products, float32 within."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        experts: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
        keep: bool,
    ) -> Tensor:
        sizes = (T, K, E, D, F) = (*experts.shape, *down.shape)
        x, experts, weights = x.contiguous(), experts.contiguous(), weights.contiguous()
        plan = experts.new_empty(E + 1 + 2 * T * K)  # where runs begin; pair <-> row
        hidden = x.new_empty(T * K, 2 * F) if keep else None
        y, out = x.new_empty(T * K, D), torch.empty_like(x)
        run = native("experts_forward")
        assert run is not None
        threads = torch.get_num_threads()
        if run(x, experts, weights, gate_up, down, *sizes, plan, hidden, y, out, threads):
            raise IndexError(f"an expert is not in [0, {E})")
        ctx.save_for_backward(x, weights, gate_up, down, plan, hidden)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, Tensor, Tensor | None, Tensor | None, None]:
        x, weights, gate_up, down, plan, hidden = ctx.saved_tensors
        T, K, _, D, F = ctx.sizes
        grad_hidden = x.new_empty(T * K, _round_up(2 * F))
        weighted, rows = x.new_empty(T * K, _round_up(F)), x.new_empty(T * K, D)
        grad_x, grad_weights = torch.empty_like(x), torch.empty_like(weights)
        grad_gate_up = torch.empty_like(gate_up) if ctx.needs_input_grad[3] else None
        grad_down = torch.empty_like(down) if ctx.needs_input_grad[4] else None
        run = native("experts_backward")
        assert run is not None
        run(
            *(grad.contiguous(), x, weights, gate_up, down, plan, hidden, *ctx.sizes),
            *(grad_hidden, weighted, rows),
            *(grad_x, grad_weights, grad_gate_up, grad_down, torch.get_num_threads()),
        )
        return grad_x, None, grad_weights, grad_gate_up, grad_down, None


def _round_up(count: int) -> int:
    return (count + 31) // 32 * 32  # the inputs that native products take at a time
