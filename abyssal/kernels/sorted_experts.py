"""Routed experts with torch's products: tokens sorted by expert, one SwiGLU per expert, and back.

Three steps, none of which loops over tokens or drops one: ``sort_by_expert`` plans, ``scatter``
copies tokens into runs of one expert each, ``grouped_swiglu`` runs each expert over its run,
``gather`` sums what came back. Runs are padded to a multiple of ROUND, since a CPU matrix library
prepares a kernel for every new row count (about 0.6 ms each). On a GPU in BF16 ``grouped_experts``
takes the same steps, all experts in one product and no count read back.

    T tokens    D hidden_size    E experts    K experts per token    F expert width
    M rows after sorting
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from abyssal.kernels.swiglu import swiglu_backward, swiglu_forward

ROUND = 32


def sorted_experts(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`experts.reference` by sorting, for every type and device."""
    order = sort_by_expert(experts, len(down))
    rows = scatter(x, order, experts.shape[1])  # (M, D)
    return gather(grouped_swiglu(rows, gate_up, down, order.counts), weights, order)


def grouped_experts(
    x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`experts.reference` by torch's grouped products, in BF16: no step waits for the device."""
    order = sort_by_expert(experts, len(down), experts.numel() + ROUND * len(down))
    rows = scatter(x, order, experts.shape[1])  # (M, D)
    y: Tensor = _GroupedProducts.apply(rows, gate_up, down, order.ends)
    return gather(y, weights, order)


class Order(NamedTuple):
    """Where each (token, choice) pair stands among the rows sorted by expert."""

    row: Tensor  # (T*K,) int64: the row of pair t*K + k
    pair: Tensor  # (M,) int64: the pair in each row, or T*K in a padding row
    runs: Tensor  # (E,) int64: rows of each expert, padded; M in all, or less

    @property
    def counts(self) -> list[int]:
        """The rows of each expert as numbers, for which a GPU is waited for."""
        counts: list[int] = self.runs.tolist()
        return counts

    @property
    def ends(self) -> Tensor:
        """Behind the last row of each expert's run (E,), int32."""
        return self.runs.cumsum(0, dtype=torch.int32)


def sort_by_expert(experts: Tensor, num_experts: int, rows: int | None = None) -> Order:
    """Plan the rows for experts (T, K), each expert's run rounded up to a multiple of ROUND.

    M is what the runs take; or `rows`, at least that many, which spares reading it back.
    """
    flat, pair = experts.flatten().sort(stable=True)
    counts = _count(flat, num_experts)
    padded = (counts + ROUND - 1) // ROUND * ROUND
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)  # (E,) rows of padding before
    place = torch.arange(len(flat), device=flat.device) + shift[flat]
    row = torch.empty_like(pair).scatter_(0, pair, place)
    M = int(padded.sum()) if rows is None else rows
    return Order(row, pair.new_full((M,), len(flat)).scatter_(0, place, pair), padded)


def _count(flat: Tensor, num_experts: int) -> Tensor:
    """How often each expert stands in flat (T*K,), sorted."""
    if flat.device.type == "cpu":
        return flat.bincount(minlength=num_experts)
    # bincount would wait for a GPU to learn the highest number.
    borders = torch.arange(num_experts + 1, device=flat.device)
    return torch.searchsorted(flat, borders).diff()


def scatter(x: Tensor, order: Order, choices: int) -> Tensor:
    """x (T, D) -> the rows of every expert's run (M, D), any token where a run is padded."""
    rows: Tensor = _Scatter.apply(x, order, choices)
    return rows


def gather(y: Tensor, weights: Tensor, order: Order) -> Tensor:
    """y (M, D) and weights (T, K) -> the weighted sum of each token's experts (T, D)."""
    out: Tensor = _Gather.apply(y, weights, order)
    return out


def grouped_swiglu(x: Tensor, gate_up: Tensor, down: Tensor, counts: list[int]) -> Tensor:
    """Each run of x (M, D) through its own expert: gate_up (E, 2F, D), down (E, D, F) -> (M, D)."""
    out: Tensor = _GroupedSwiGLU.apply(x, gate_up, down, counts)
    return out


def _rows_of(x: Tensor, order: Order, choices: int) -> Tensor:
    """The token of every row; a padding row holds the last one, and its result is never used."""
    token = (order.pair // choices).clamp_(max=len(x) - 1)
    return x.index_select(0, token)


def _sum_choices(x: Tensor) -> Tensor:
    """x (T, K, D) -> (T, D); adding K slices is several times as fast as a strided sum."""
    total, *rest = x.unbind(1)
    total = total.clone()
    for choice in rest:
        total += choice
    return total


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order, choices: int) -> Tensor:
        ctx.order, ctx.choices = order, choices
        return _rows_of(x, order, choices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        picked = grad.index_select(0, ctx.order.row)
        return _sum_choices(picked.unflatten(0, (-1, ctx.choices))), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weights: Tensor, order: Order) -> Tensor:
        ctx.order = order
        picked = y.index_select(0, order.row).unflatten(0, weights.shape)  # (T, K, D)
        ctx.save_for_backward(picked, weights)
        return _sum_choices(picked * weights.to(y.dtype).unsqueeze(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        picked, weights = ctx.saved_tensors
        order: Order = ctx.order
        grad_weights = (picked * grad.unsqueeze(1)).sum(-1, dtype=weights.dtype)
        flat = torch.cat([weights.to(grad.dtype).flatten(), grad.new_zeros(1)])
        grad_rows = _rows_of(grad, order, weights.shape[1]) * flat[order.pair].unsqueeze(-1)
        return grad_rows, grad_weights, None


class _GroupedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, counts: list[int]) -> Tensor:
        hidden = x.new_empty(len(x), gate_up.shape[1])  # (M, 2F)
        for e, rows in runs_of(counts):
            torch.mm(x[rows], gate_up[e].T, out=hidden[rows])
        middle = swiglu_forward(hidden)
        out = torch.empty_like(x)
        for e, rows in runs_of(counts):
            torch.mm(middle[rows], down[e].T, out=out[rows])
        ctx.save_for_backward(x, gate_up, down, hidden, middle)
        ctx.counts = counts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate_up, down, hidden, middle = ctx.saved_tensors
        counts: list[int] = ctx.counts
        grad_down, grad_gate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        grad_middle, grad_x = torch.empty_like(middle), torch.empty_like(x)
        for e, rows in runs_of(counts):
            torch.mm(grad[rows], down[e], out=grad_middle[rows])
            torch.mm(grad[rows].T, middle[rows], out=grad_down[e])
        grad_hidden = swiglu_backward(hidden, grad_middle)
        for e, rows in runs_of(counts):
            torch.mm(grad_hidden[rows], gate_up[e], out=grad_x[rows])
            torch.mm(grad_hidden[rows].T, x[rows], out=grad_gate_up[e])
        return grad_x, grad_gate_up, grad_down, None


class _GroupedProducts(torch.autograd.Function):
    """`_GroupedSwiGLU` in products over all runs, which end at `ends` (E,); what lies behind the
    last is whatever was there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
        hidden = grouped_mm(x, gate_up.transpose(1, 2), offs=ends)  # (M, 2F)
        middle = swiglu_forward(hidden)
        ctx.save_for_backward(x, gate_up, down, hidden, middle, ends)
        return grouped_mm(middle, down.transpose(1, 2), offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate_up, down, hidden, middle, ends = ctx.saved_tensors
        grad_down = grouped_mm(grad.T, middle, offs=ends)  # (E, D, F)
        grad_hidden = swiglu_backward(hidden, grouped_mm(grad, down, offs=ends))
        grad_gate_up = grouped_mm(grad_hidden.T, x, offs=ends)  # (E, 2F, D)
        return grouped_mm(grad_hidden, gate_up, offs=ends), grad_gate_up, grad_down, None


def runs_of(counts: list[int]) -> list[tuple[int, slice]]:
    """The expert and the rows of every run that is not empty."""
    runs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            runs.append((expert, slice(start, start + count)))
        start += count
    return runs
