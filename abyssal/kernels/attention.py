"""Causal attention over sequences laid end to end, with query/key and value heads of different size.

    o_i = sum over j <= i of softmax_j(q_i . k_j * scale) v_j        eq. 10

DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. ``reference`` is the definition, one sequence at a time.
``causal_attention`` computes the same on dense blocks of queries: sequences of like length are batched,
keys beyond a block's end are never touched, and past KEEP tokens the backward recomputes the probabilities.
torch's own fused attention takes a slow path when the head sizes differ, as they do here.

    T tokens    H heads    D query/key head size    V value head size    L padded length    B batch of L
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

BLOCK = 128  # query rows at a time
KEEP = 512  # longest sequence whose probabilities are kept for the backward
ROUND = 32  # sequences are padded to a multiple of this, so that few matrix shapes occur


def reference(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """q, k (T, H, D) and v (T, H, V) -> (T, H, V), each token attending to its own sequence so far."""
    out = []
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end]).float() * scale
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1).to(v.dtype)
        out.append(torch.einsum("hij,jhv->ihv", weights, v[start:end]))
    return torch.cat(out)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """q, k (T, H, D) and v (T, H, V) -> (T, H, V), each token attending to its own sequence so far."""
    lengths = cu_seqlens.diff()
    if bool((lengths == lengths[0]).all()):  # rows of one length need no index
        heads = [x.unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v)]
        equal: Tensor = _Attention.apply(*heads, scale)  # (B, H, L, V)
        return equal.transpose(1, 2).flatten(0, 1)
    parts, places = [], []
    for index, real in _buckets(cu_seqlens):
        index = index.to(q.device)
        heads = [x[index].transpose(1, 2) for x in (q, k, v)]
        mixed: Tensor = _Attention.apply(*heads, scale)  # (B, H, L, V)
        parts.append(mixed.transpose(1, 2)[real])
        places.append(index[real])
    order = torch.cat(places).argsort()
    return torch.cat(parts)[order]


def _buckets(cu_seqlens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Group sequences of like length: (B, L) token indices and which of them are real.

    Sequences are padded at the end by repeating their last token, which no earlier token can see.
    """
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    padded = (lengths + ROUND - 1) // ROUND * ROUND
    if len(lengths) > 4:  # few groups: lengths within a factor of 1.5 share one
        steps = torch.tensor([32, 64, 96, 128, 192, 256, 384, 512])
        padded = torch.where(
            padded <= 512, steps[torch.searchsorted(steps, padded.clamp(max=512))], padded
        )
    for length in padded.unique().tolist():
        chosen = (padded == length).nonzero()[:, 0]
        offsets = torch.arange(length).expand(len(chosen), -1)
        real = offsets < lengths[chosen, None]
        last = lengths[chosen, None] - 1
        yield starts[chosen, None] + torch.minimum(offsets, last), real


class _Attention(torch.autograd.Function):
    """Causal attention on q, k (B, H, L, D) and v (B, H, L, V), in blocks of queries."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        B, H, L, _ = q.shape
        q, k, v = (x.reshape(B * H, L, -1) for x in (q, k, v))
        out = v.new_empty(B * H, L, v.shape[-1])
        kept = []
        for rows in _blocks(L):
            weights = _weights(q, k, rows, scale)
            torch.bmm(weights, v[:, : rows.stop], out=out[:, rows])
            if L <= KEEP:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.shape = scale, (B, H, L)  # type: ignore[attr-defined]
        return out.view(B, H, L, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        B, H, L = ctx.shape  # type: ignore[attr-defined]
        scale: float = ctx.scale  # type: ignore[attr-defined]
        grad = grad.reshape(B * H, L, -1)
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for i, rows in enumerate(_blocks(L)):
            past = slice(0, rows.stop)
            weights = kept[i] if kept else _weights(q, k, rows, scale)
            dv[:, past] += weights.transpose(1, 2) @ grad[:, rows]
            dweights = grad[:, rows] @ v[:, past].transpose(1, 2)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dscores = dscores.mul_(scale)
            torch.bmm(dscores, k[:, past], out=dq[:, rows])
            dk[:, past] += dscores.transpose(1, 2) @ q[:, rows]
        shape = (B, H, L, -1)
        return dq.view(shape), dk.to(k.dtype).view(shape), dv.to(v.dtype).view(shape), None


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _weights(q: Tensor, k: Tensor, rows: slice, scale: float) -> Tensor:
    """Probabilities (BH, rows, keys) of a block of queries over all keys up to its end."""
    future = q.new_full((rows.stop - rows.start, rows.stop), -torch.inf).triu_(rows.start + 1)
    keys = k[:, : rows.stop].transpose(1, 2)
    return torch.baddbmm(future, q[:, rows], keys, alpha=scale).softmax(-1)
