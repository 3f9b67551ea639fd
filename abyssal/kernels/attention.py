"""Causal attention over sequences laid end to end, with query/key and value heads of different
size, and a rotary key that all heads share.

    k_j = [k_nope_j ; turned k_rope_j]    q_i = [q_nope_i ; turned q_rope_i]
    o_i = sum over j <= i of softmax_j(q_i . k_j * scale) v_j                     eq. 10

DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. ``reference`` is the definition, one sequence at a
time. ``mla_attention`` computes the same from what the projections give: in attention.cpp, which
turns, joins and splits while it packs, or by ``causal_attention`` with torch's products.

    T tokens    H heads    N query/key head size that is not turned    R rotary size
    V value head size
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.kernels import rotary
from abyssal.kernels.causal_attention import causal_attention, causal_reference
from abyssal.kernels.registry import Native, native


def reference(
    q: Tensor,
    kv: Tensor,
    k_rope: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """q (T, H, N+R), kv (T, H, N+V), k_rope (T, R), cos and sin (T, R/2) -> (T, H, V)."""
    R = k_rope.shape[-1]
    N = q.shape[-1] - R
    q = torch.cat([q[..., :N], rotary.reference(q[..., N:], cos, sin)], -1)
    shared = rotary.reference(k_rope.unsqueeze(1), cos, sin).expand(-1, q.shape[1], -1)
    k = torch.cat([kv[..., :N], shared], -1)
    return causal_reference(q, k, kv[..., N:], cu_seqlens, scale)


def mla_attention(
    q: Tensor,
    kv: Tensor,
    k_rope: Tensor,
    cos: Tensor,
    sin: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """q (T, H, N+R), kv (T, H, N+V), k_rope (T, R), cos and sin (T, R/2) -> (T, H, V).

    Rotary parts come as they were projected and are turned here by the angles of cos and sin.
    """
    twins = _twins(q, kv, k_rope, cos, sin, scale)
    if twins:
        mixed: Tensor = _Native.apply(twins, q, kv, k_rope, cos, sin, cu_seqlens, scale)
        return mixed
    R = k_rope.shape[-1]
    q_nope, q_rope = q.split([q.shape[-1] - R, R], -1)
    k_nope, v = kv.split([q_nope.shape[-1], kv.shape[-1] - q_nope.shape[-1]], -1)
    shared = rotary.rotate(k_rope.unsqueeze(1), cos, sin).expand_as(q_rope)
    turned = torch.cat([q_nope, rotary.rotate(q_rope, cos, sin)], -1)  # (T, H, N+R)
    return causal_attention(turned, torch.cat([k_nope, shared], -1), v, cu_seqlens, scale)


def _twins(
    q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, scale: float
) -> tuple[Native, Native] | None:
    """The native forward and backward, for BF16 on the CPU with angles in float32; else None."""
    if not all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in (q, kv, k_rope)):
        return None
    if not cos.dtype == sin.dtype == torch.float32 or scale <= 0:
        return None
    forward, backward = native("mla_attention"), native("mla_attention_backward")
    return (forward, backward) if forward and backward else None


class _Native(torch.autograd.Function):
    """The twins of attention.cpp; what came, what left and lse (T, H) are kept for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        twins: tuple[Native, Native],
        q: Tensor,
        kv: Tensor,
        k_rope: Tensor,
        cos: Tensor,
        sin: Tensor,
        cu_seqlens: Tensor,
        scale: float,
    ) -> Tensor:
        forward, ctx.backward_twin = twins
        k_rope = k_rope if k_rope.stride(-1) == 1 else k_rope.contiguous()
        q, kv, cos, sin = (x.contiguous() for x in (q, kv, cos, sin))
        cu_seqlens = cu_seqlens.to("cpu", torch.int64).contiguous()
        T, H, N, R, V = _sizes(q, kv, k_rope)
        turned = q.new_empty(T, R)
        out = q.new_empty(T, H, V)
        lse = q.new_empty(T, H, dtype=torch.float32)
        forward(
            q, kv, k_rope, k_rope.stride(0), cos, sin, cu_seqlens, len(cu_seqlens) - 1, H, N,
            R, V, scale, turned, out, lse, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(q, kv, turned, cos, sin, cu_seqlens, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, turned, cos, sin, cu_seqlens, out, lse = ctx.saved_tensors
        T, H, N, R, V = _sizes(q, kv, turned)
        dq, dkv, dk_rope = (torch.empty_like(x) for x in (q, kv, turned))
        by_head = q.new_empty(T, H, R, dtype=torch.float32)
        ctx.backward_twin(
            q, kv, turned, cos, sin, cu_seqlens, len(cu_seqlens) - 1, H, N, R, V, ctx.scale, out,
            lse, grad.contiguous(), dq, dkv, dk_rope, by_head, torch.get_num_threads(),
        )  # fmt: skip
        return None, dq, dkv, dk_rope, None, None, None, None


def _sizes(q: Tensor, kv: Tensor, k_rope: Tensor) -> tuple[int, int, int, int, int]:
    """T, H, N, R, V."""
    T, H, D = q.shape
    R = k_rope.shape[-1]
    return T, H, D - R, R, kv.shape[-1] - (D - R)
