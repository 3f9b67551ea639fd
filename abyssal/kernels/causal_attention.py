"""Causal attention with torch's products, on dense blocks of queries.

    o_i = sum over j <= i of softmax_j(q_i . k_j * scale) v_j                     eq. 10

DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. ``causal_reference`` is the definition, one sequence
at a time. Sequences of like length are batched, keys beyond a block's end are never touched, and
past KEEP tokens the backward recomputes the probabilities. On a GPU torch's own attention is
faster; on a CPU it takes a slow path when the head sizes differ, as they do here.

    T tokens    H heads    D query/key head size    V value head size
    L padded length    B sequences of one padded length
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128  # query rows at a time
KEEP = 512  # longest sequence whose probabilities are kept for the backward
STEPS = (64, 192, 256, 512)  # lengths that shorter sequences are padded to; more cost more calls


def causal_reference(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """q, k (T, H, D), v (T, H, V) -> (T, H, V), each token attending to its sequence so far."""
    out = []
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end]).float() * scale
        future = torch.ones(end - start, end - start, dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1).to(v.dtype)
        out.append(torch.einsum("hij,jhv->ihv", weights, v[start:end]))
    return torch.cat(out)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """q, k (T, H, D), v (T, H, V) -> (T, H, V), each token attending to its sequence so far."""
    low = q.device.type == "cuda" and q.dtype == torch.bfloat16
    if low and not torch.are_deterministic_algorithms_enabled():
        return fused_attention(q, k, v, cu_seqlens, scale)
    mixed: Tensor = _Attention.apply(q, k, v, _buckets(cu_seqlens, q.device), scale)
    return mixed


def fused_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """`causal_reference` by torch's own attention, whose probabilities never leave a GPU's cores.

    cuDNN takes heads of unequal sizes as they are: padding v to D, as flash attention wants it,
    costs 1.6 times as much at 192 and 128. Its backward adds in no fixed order where rows are long;
    told to keep one, torch takes a kernel slower than the blocks of `_Attention`, which keep it.
    """
    tokens, parts = [], []
    for bucket in _buckets(cu_seqlens, q.device):
        Q, K, V = (_heads(x, bucket) for x in (q, k, v))  # (B, H, L, D or V)
        mixed = F.scaled_dot_product_attention(Q, K, V, is_causal=True, scale=scale)
        rows = mixed.transpose(1, 2).flatten(0, 1)  # (B*L, H, V)
        if bucket.row is None:
            return rows
        tokens.append(bucket.token)
        parts.append(rows.index_select(0, bucket.real))
    order, out = torch.cat(tokens), torch.cat(parts)
    return torch.empty_like(out).index_copy(0, order, out)


class _Bucket(NamedTuple):
    """Sequences of like length: which token stands in each row, and which rows are not padding."""

    size: int  # B sequences
    row: Tensor | None  # (B*L,) token of each row; None: all tokens in order, none padded
    real: Tensor  # rows that are real ...
    token: Tensor  # ... and their tokens
    padding: Tensor  # rows that are not


def _buckets(cu_seqlens: Tensor, device: torch.device) -> list[_Bucket]:
    """Group sequences by padded length; padding repeats the last token, which none sees."""
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    if bool((lengths == lengths[0]).all()):
        nothing = torch.empty(0, dtype=torch.int64)
        return [_Bucket(len(lengths), None, nothing, nothing, nothing)]
    buckets = []
    padded = _padded(lengths)
    for length in padded.unique().tolist():
        chosen = (padded == length).nonzero()[:, 0]
        offsets = torch.arange(length).expand(len(chosen), -1)  # (B, L)
        last = lengths[chosen, None] - 1
        row = (starts[chosen, None] + torch.minimum(offsets, last)).flatten()
        inside = (offsets <= last).flatten()
        real, padding = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        parts = (row, real, row[real], padding)
        buckets.append(_Bucket(len(chosen), *(part.to(device) for part in parts)))
    return buckets


def _padded(lengths: Tensor) -> Tensor:
    """Round lengths up to one of STEPS, and beyond them to a multiple of 512."""
    steps = torch.tensor(STEPS)
    small = steps[torch.searchsorted(steps, lengths.clamp(max=STEPS[-1]))]
    return torch.where(lengths <= STEPS[-1], small, (lengths + 511) // 512 * 512)


class _Attention(torch.autograd.Function):
    """Each bucket in turn, in blocks of queries."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, buckets: list[_Bucket], scale: float
    ) -> Tensor:
        out = v.new_empty(v.shape)  # (T, H, V)
        saved: list[Tensor] = []
        kept: list[list[Tensor]] = []
        for bucket in buckets:
            heads = _rows(q, bucket), _rows(k, bucket), _rows(v, bucket)  # (B*H, L, D or V)
            mixed, weights = _attend(*heads, scale)
            _put(out, mixed, bucket)
            saved += heads
            kept.append(weights)
        ctx.save_for_backward(*saved)
        ctx.kept, ctx.buckets, ctx.scale = kept, buckets, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        saved = ctx.saved_tensors
        buckets: list[_Bucket] = ctx.buckets
        T, H, _ = grad.shape
        dq, dk, dv = (saved[i].new_empty(T, H, saved[i].shape[-1]) for i in range(3))
        for i, bucket in enumerate(buckets):
            query, key, value = saved[3 * i : 3 * i + 3]
            rows = _rows(grad, bucket, blank_padding=True)
            grads = _attend_backward(query, key, value, rows, ctx.kept[i], ctx.scale)
            for flat, grouped in zip((dq, dk, dv), grads, strict=True):
                _put(flat, grouped, bucket)
        return dq, dk, dv, None, None


def _heads(x: Tensor, bucket: _Bucket) -> Tensor:
    """Flat x (T, H, D) -> the sequences of a bucket (B, H, L, D), copied only if they need padding.

    What is padded sees and is seen by no real token, so its gradients are zeros.
    """
    rows = x if bucket.row is None else x.index_select(0, bucket.row)
    heads: Tensor = rows.unflatten(0, (bucket.size, -1)).transpose(1, 2)
    return heads


def _rows(x: Tensor, bucket: _Bucket, blank_padding: bool = False) -> Tensor:
    """Flat x (T, H, D) -> the sequences of a bucket, head by head (B*H, L, D)."""
    H, D = x.shape[1:]
    if bucket.row is not None:
        x = x.flatten(1).index_select(0, bucket.row)
        if blank_padding:  # a gradient must not reach the keys twice
            x.index_fill_(0, bucket.padding, 0)
    return x.reshape(bucket.size, -1, H, D).transpose(1, 2).reshape(bucket.size * H, -1, D)


def _put(flat: Tensor, x: Tensor, bucket: _Bucket) -> None:
    """Write a bucket's x (B*H, L, D) to its tokens in flat (T, H, D)."""
    H, D = flat.shape[1:]
    x = x.view(bucket.size, H, -1, D).transpose(1, 2)  # (B, L, H, D)
    if bucket.row is None:
        flat.view(x.shape).copy_(x)
    else:
        rows = x.reshape(-1, H * D).index_select(0, bucket.real)
        flat.flatten(1).index_copy_(0, bucket.token, rows)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
    """q, k (BH, L, D), v (BH, L, V) -> (BH, L, V), and the probabilities where they are kept."""
    L = q.shape[1]
    out = v.new_empty(v.shape)
    kept = []
    for rows in _blocks(L):
        weights = _weights(q, k, rows, scale)
        torch.bmm(weights, v[:, : rows.stop], out=out[:, rows])
        if L <= KEEP:
            kept.append(weights)
    return out, kept


def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, kept: list[Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k, v given that of the mixture (BH, L, V)."""
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    for i, rows in enumerate(_blocks(q.shape[1])):
        past = slice(0, rows.stop)
        weights = kept[i] if kept else _weights(q, k, rows, scale)
        dv[:, past] += weights.transpose(1, 2) @ grad[:, rows]
        dweights = grad[:, rows] @ v[:, past].transpose(1, 2)
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(scale)
        torch.bmm(dscores, k[:, past], out=dq[:, rows])
        dk[:, past] += dscores.transpose(1, 2) @ q[:, rows]
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _weights(q: Tensor, k: Tensor, rows: slice, scale: float) -> Tensor:
    """Probabilities (BH, rows, keys) of a block of queries over all keys up to its end."""
    future = q.new_full((rows.stop - rows.start, rows.stop), -torch.inf).triu_(rows.start + 1)
    keys = k[:, : rows.stop].transpose(1, 2)
    return torch.baddbmm(future, q[:, rows], keys, alpha=scale).softmax(-1)
