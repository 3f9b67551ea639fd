"""SwiGLU feed-forwards in FP8: one for all tokens, and routed experts.

    h = [x G^T, x U^T]    y = (silu(h_gate) h_up) D^T

All nine products are in FP8 (`fp8_linear` says which tiles). For the backward stay x and h in FP8;
SwiGLU's output is computed again from h. Routed tokens travel in FP8: x is quantized once, before
it is dispatched, and so is the gradient of what comes back, both with scales that are powers of
two; sums over a token's experts are in BF16, or what the model has. DeepSeek-V3
(arXiv 2412.19437), sections 3.3.2 to 3.3.4.

    T tokens    K choices of each    M rows, sorted by expert    E experts    D hidden size
    F intermediate size
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.float8 import E4M3
from abyssal.kernels.fp8_product import product
from abyssal.kernels.fp8_tiles import TILE, Fp8, Tiled, blocks, columns, decode, regrouped, tiles
from abyssal.kernels.sorted_experts import Order, runs_of, sort_by_expert
from abyssal.kernels.swiglu import swiglu_backward, swiglu_forward

Runs = list[tuple[int, slice]]  # experts, and the rows of each


class Matrices(NamedTuple):
    """Weights in FP8, gate and up apart: their blocks do not reach into each other."""

    gate_up: Tiled  # (E, 2, F, D)
    down: Tiled  # (E, D, F)

    @classmethod
    def of(cls, gate_up: Tensor, down: Tensor, how: Fp8) -> "Matrices":
        """gate_up (E, 2F, D) and down (E, D, F), quantized."""
        return cls(blocks(gate_up.unflatten(1, (2, -1)), how.spread), blocks(down, how.spread))


class Kept(NamedTuple):
    """What the backward wants to know of a pass."""

    x: Tiled  # (M, D)
    hidden: Tiled  # (2M, F): h, the halves of a row apart
    matrices: Matrices
    runs: Runs
    dtype: torch.dtype  # between two products
    how: Fp8


class Back(NamedTuple):
    """What `backward_rows` finds."""

    rows: Tensor  # (M, D) float32: the gradient of x's rows
    weights: Tensor  # (M,): of what rows were weighted by
    gate_up: Tensor  # (E, 2F, D) float32
    down: Tensor  # (E, D, F) float32


def fp8_mlp(x: Tensor, gate_up: Tensor, down: Tensor, how: Fp8) -> Tensor:
    """x (T, D), gate_up (2F, D), down (D, F) -> (T, D)."""
    y: Tensor = _MLP.apply(x, gate_up, down, how)
    return y


def fp8_experts(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, how: Fp8
) -> Tensor:
    """x (T, D), experts and weights (T, K), gate_up (E, 2F, D), down (E, D, F) -> (T, D)."""
    y: Tensor = _Experts.apply(x, experts, weights, gate_up, down, how)
    return y


def forward_rows(
    x: Tiled, matrices: Matrices, runs: Runs, dtype: torch.dtype, how: Fp8
) -> tuple[Tensor, Tiled]:
    """x (M, D) through the experts of its rows -> y (M, D) float32, and h (2M, F) to keep."""
    M, F = len(x.numbers), matrices.down.numbers.shape[-1]
    sums = x.scale.new_empty(M, 2 * F)  # every row is in a run
    for e, rows in runs:
        for half in range(2):
            gate_or_up = matrices.gate_up.at(e, half)
            product(x.at(rows), gate_or_up, sums[rows, half * F : (half + 1) * F])
    hidden = sums.to(dtype)
    middle = tiles(swiglu_forward(hidden), E4M3, how.spread)
    y = x.scale.new_empty(M, matrices.down.numbers.shape[-2])
    for e, rows in runs:
        product(middle.at(rows), matrices.down.at(e), y[rows])
    return y, tiles(hidden.view(2 * M, F), E4M3, how.spread)


def backward_rows(grad: Tiled, weights: Tensor | None, kept: Kept) -> Back:
    """The gradients of all that went into a pass, of grad (M, D) weighted by weights (M,)."""
    (E, D, F), M = kept.matrices.down.numbers.shape, len(kept.x.numbers)
    hidden = decode(kept.hidden).view(M, 2 * F).to(kept.dtype)
    middle = swiglu_forward(hidden)
    empty, zeros = kept.x.scale.new_empty, kept.x.scale.new_zeros
    grad_middle = empty(M, F)
    for e, rows in kept.runs:
        product(grad.at(rows), kept.matrices.down.at(e).T, grad_middle[rows])
    grad_weights = (grad_middle * middle).sum(-1)
    if weights is not None:
        grad_middle *= weights[:, None]
        grad = Tiled(grad.numbers, grad.scale * weights[:, None])
    grad_hidden = swiglu_backward(hidden, grad_middle.to(kept.dtype))  # (M, 2F)
    back = Back(empty(M, D), grad_weights, zeros(E, 2 * F, D), zeros(E, D, F))
    _into_x(grad_hidden, kept, back.rows)
    _into_weights(decode(grad), middle, grad_hidden, weights is not None, kept, back)
    return back


def _into_x(grad_hidden: Tensor, kept: Kept, out: Tensor) -> None:
    """Dgrad of gate and up: grad_hidden (M, 2F) -> out (M, D)."""
    how = kept.how
    for half, part in enumerate(grad_hidden.chunk(2, -1)):
        by_row = tiles(part, how.gradient_format, how.gradient_spread)
        for e, rows in kept.runs:
            matrix = kept.matrices.gate_up.at(e, half).T
            product(by_row.at(rows), matrix, out[rows], add=half == 1)


def _into_weights(
    grad: Tensor, middle: Tensor, grad_hidden: Tensor, routed: bool, kept: Kept, back: Back
) -> None:
    """Wgrad of all three: grad (M, D), middle (M, F), grad_hidden (M, 2F) and what was kept."""
    how, F = kept.how, middle.shape[1]
    form, spread = how.gradient_format, how.gradient_spread
    for e, rows in kept.runs:
        by_token = columns(grad[rows], form, spread, power_of_two=routed)
        product(by_token, columns(middle[rows], E4M3, how.spread), back.down[e])
        inputs = regrouped(kept.x.at(rows), how.spread, power_of_two=routed)
        for half in range(2):
            of_half = slice(half * F, (half + 1) * F)
            by_token = columns(grad_hidden[rows, of_half], form, spread)
            product(by_token, inputs, back.gate_up[e, of_half])


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, how: Fp8) -> Tensor:
        rows = tiles(x, E4M3, how.spread)
        matrices = Matrices.of(gate_up[None], down[None], how)
        y, hidden = forward_rows(rows, matrices, [(0, slice(0, len(x)))], x.dtype, how)
        ctx.save_for_backward(*_flat(rows, hidden, *matrices))
        ctx.how, ctx.dtype = how, x.dtype
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        how: Fp8 = ctx.how
        x, hidden, matrices = _unflat(ctx.saved_tensors)
        kept = Kept(x, hidden, matrices, [(0, slice(0, len(grad)))], ctx.dtype, how)
        back = backward_rows(tiles(grad, how.gradient_format, how.gradient_spread), None, kept)
        return back.rows.to(ctx.dtype), back.gate_up[0], back.down[0], None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        experts: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        down: Tensor,
        how: Fp8,
    ) -> Tensor:
        order = sort_by_expert(experts, len(down))
        sent = tiles(x, E4M3, how.spread, power_of_two=True)
        matrices, runs = Matrices.of(gate_up, down, how), runs_of(order.counts)
        received = _dispatched(sent, order, experts.shape[1])
        y, hidden = forward_rows(received, matrices, runs, x.dtype, how)
        ctx.save_for_backward(weights, *order, *_flat(sent, hidden, *matrices))
        ctx.how, ctx.dtype, ctx.runs = how, x.dtype, runs
        picked = y.to(x.dtype)[order.row].unflatten(0, weights.shape)  # (T, K, D)
        out: Tensor = (picked * weights[..., None]).sum(1).to(x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor, None]:
        how: Fp8 = ctx.how
        weights, row, pair, runs, *kept_tensors = ctx.saved_tensors
        order, choices = Order(row, pair, runs), weights.shape[1]
        sent, hidden, matrices = _unflat(kept_tensors)
        received = _dispatched(sent, order, choices)
        kept = Kept(received, hidden, matrices, ctx.runs, ctx.dtype, how)
        returned = tiles(grad, how.gradient_format, how.gradient_spread, power_of_two=True)
        of_row = torch.cat([weights.flatten(), weights.new_zeros(1)])[order.pair]  # (M,)
        back = backward_rows(_dispatched(returned, order, choices), of_row, kept)
        picked = back.rows.to(ctx.dtype)[order.row].unflatten(0, weights.shape)
        grad_x = picked.float().sum(1).to(ctx.dtype)
        grad_weights = back.weights[order.row].view(weights.shape).to(weights.dtype)
        return grad_x, None, grad_weights, back.gate_up, back.down, None


def _dispatched(x: Tiled, order: Order, choices: int) -> Tiled:
    """The rows (M, D) that tokens x (T, D) become; those that fill up a run are zeros."""
    token = (order.pair // choices).clamp(max=len(x.numbers) - 1)
    meant = order.pair < len(order.row)
    numbers = x.numbers.view(torch.uint8)[token].view(x.numbers.dtype)
    return Tiled(numbers, x.scale[token] * meant[:, None])


def _flat(*parts: Tiled) -> list[Tensor]:
    return [tensor for part in parts for tensor in part[:2]]


def _unflat(saved: list[Tensor]) -> tuple[Tiled, Tiled, Matrices]:
    """x, h and the matrices again."""
    pairs = [(saved[i], saved[i + 1]) for i in range(0, len(saved), 2)]
    x, hidden = (Tiled(*pair) for pair in pairs[:2])
    return x, hidden, Matrices(*(Tiled(*pair, TILE) for pair in pairs[2:]))
