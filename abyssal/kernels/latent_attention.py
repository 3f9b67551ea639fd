"""Absorbed attention over a cache in pages: every head reads the same latents.

    p_ij = softmax_j(q_i . l_j * scale)    o_i = sum over j <= i of p_ij c_j      eq. 10, absorbed
    with l_j = [c_j ; k_rope_j]

DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. The latents of a sequence lie in pages anywhere in
one pool; a table names them in order. ``reference`` is the definition, one query at a time.

``latent_attention`` copies the pages of some sequences of like length next to each other and
multiplies whole sequences at once; a copy that fits the processor's second cache costs less than
many small products. ``fixed_attention`` serves the deterministic mode: all its products have one
shape, and what a query gets depends on nothing but itself and its own latents, to the last bit.
``native_attention`` (latent_attention.h) is both at once, on a CPU.

Pages are float32, bfloat16 or int8 (latent_pages.py).

    T tokens    H heads    W latent size, C + R    C kv_lora_rank    S sequences
    n queries of each    P pages of the longest    L = 64 P
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.kernels.latent_pages import INT8
from abyssal.kernels.registry import Native, native

BLOCK = 128  # queries of a sequence whose scores are in memory together
COPY_BYTES = 2**20  # latents copied together: they fit the second cache and stay there
COPY_BYTES_GPU = 2**28  # where only the number of calls matters
PAIRS = 32  # (query, page) pairs of one product of `fixed_attention`
LINE_BYTES = 64  # of the processor's caches
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: INT8}  # of latent_pages.h


def reference(
    q: Tensor,
    pages: Tensor,
    tables: Sequence[Sequence[int]],
    positions: Sequence[int],
    scale: float,
    kv_lora_rank: int,
) -> Tensor:
    """q (T, H, W), pages (N, 64, W) -> (T, H, C); query t reads tables[t] up to positions[t]."""
    out = []
    for query, table, position in zip(q, tables, positions, strict=True):
        latents = pages[list(table)].flatten(0, 1)[: position + 1]
        weights = (query.float() @ latents.float().T * scale).softmax(-1)  # (H, position+1)
        out.append(weights @ latents[:, :kv_lora_rank].float())
    return torch.stack(out).to(q.dtype)


class Group(NamedTuple):
    """Sequences read together; each has n queries, the last of which is its last token."""

    table: Tensor  # (S, P) int64: the pages of each sequence in order, then any page
    first: int  # every query sees the positions below it
    latest: int  # the highest position of a sequence's first query
    hidden: Tensor | None  # (S, n, 1, L - first) bool: what a query does not see; None: it sees all


def plan_group(
    table: np.ndarray, starts: np.ndarray, n: int, page_size: int, device: torch.device
) -> Group:
    """Let sequence s, in pages table[s], have queries at positions starts[s] .. starts[s] + n - 1.

    The table (S, P) is filled up with a page that holds finite numbers.
    """
    L = table.shape[1] * page_size
    first, latest = int(starts.min()) + 1, int(starts.max())
    pages = torch.from_numpy(table).to(device)
    if first == L:
        return Group(pages, first, latest, None)
    last = (starts[:, None] + np.arange(n))[:, :, None, None]
    hidden = torch.from_numpy(np.arange(first, L) > last)  # (S, n, 1, L - first)
    return Group(pages, first, latest, hidden.to(device))


def latent_attention(
    q: Tensor, pages: Tensor, group: Group, scale: float, kv_lora_rank: int
) -> Tensor:
    """q (S, n, H, W) of a group's queries, pages (N, 64, W) -> (S, n, H, C)."""
    S, n, H, W = q.shape
    P, page_size = group.table.shape[1], pages.shape[1]
    most = COPY_BYTES if q.device.type == "cpu" else COPY_BYTES_GPU
    step = max(most // (P * pages[0].nbytes), 1)
    out = q.new_empty(S, n, H, kv_lora_rank)
    for start in range(0, S, step):
        some = slice(start, start + step)
        table = group.table[some].flatten()
        latents = pages.index_select(0, table).view(len(table) // P, -1, W)  # (S', L, W)
        for begin in range(0, n, BLOCK):
            rows = slice(begin, min(begin + BLOCK, n))
            end = -(-(group.latest + rows.stop) // page_size) * page_size  # seen by some query
            hidden = None
            if group.hidden is not None:
                hidden = group.hidden[some, rows, :, : end - group.first]
            queries, seen = q[some, rows], latents[:, :end]
            out[some, rows] = _attend(queries, seen, hidden, scale, kv_lora_rank)
    return out


def _attend(
    q: Tensor, latents: Tensor, hidden: Tensor | None, scale: float, kv_lora_rank: int
) -> Tensor:
    """q (S, n, H, W) against latents (S, L, W), the last of which may be hidden -> (S, n, H, C)."""
    flat = q.flatten(1, 2)  # (S, n*H, W)
    nothing = q.new_empty(1)  # times beta, which is 0
    scores = torch.baddbmm(nothing, flat, latents.transpose(1, 2), beta=0, alpha=scale)
    if hidden is not None:  # scores (S, n*H, L)
        first = latents.shape[1] - hidden.shape[-1]
        scores.view(*q.shape[:3], -1)[..., first:].masked_fill_(hidden, -torch.inf)
    mixed = torch.bmm(scores.softmax(-1), latents[..., :kv_lora_rank])
    return mixed.view(*q.shape[:3], kv_lora_rank)


class Pairs(NamedTuple):
    """Every (query, page) pair, all first pages before all second ones; queries by descending
    number of pages, so that those which have a p-th page come first.
    """

    levels: list[int]  # how many queries have a first page, a second, ...
    order: Tensor  # (T,) int64: the query in each place
    place: Tensor  # (M,) int64: the place of each pair's query; M is a multiple of PAIRS
    page: Tensor  # (M,) int64: the page it reads
    hidden: Tensor  # (M, 1, 64) bool: what it does not see of this page


def plan_pairs(
    table: np.ndarray, positions: np.ndarray, page_size: int, device: torch.device
) -> Pairs:
    """Let query t read the pages table[t] up to positions[t]."""
    needs = positions // page_size + 1  # (T,)
    order = np.argsort(-needs, kind="stable")
    has_page = np.arange(needs.max())[:, None] < needs[order]  # (P, T)
    level, place = has_page.nonzero()
    chosen = table[order[place], level]
    last = positions[order[place]] - level * page_size
    padding = (0, -len(level) % PAIRS)  # pairs of nobody: they read the first latent of page 0
    place, chosen, last = (np.pad(column, padding) for column in (place, chosen, last))
    hidden = np.arange(page_size) > last[:, None, None]  # (M, 1, 64)
    tensors = [torch.from_numpy(array).to(device) for array in (order, place, chosen, hidden)]
    return Pairs(has_page.sum(1).tolist(), *tensors)


def fixed_attention(
    q: Tensor, pages: Tensor, pairs: Pairs, scale: float, kv_lora_rank: int
) -> Tensor:
    """q (T, H, W) against its pairs in pages (N, 64, W) -> (T, H, C).

    Each pair gives a maximum, a sum and a mixture of its own; those of a query are joined in the
    order of its pages. Sums over a page are taken by halving: additions of elements, whose result
    does not depend on how the processor walks over them. Rows are filled up to whole lines of a
    cache: a product's bits may depend on where in a line its rows begin.
    """
    q = q.index_select(0, pairs.order)
    parts = [
        _attend_pairs(q, pages, pairs, slice(start, start + PAIRS), scale, kv_lora_rank)
        for start in range(0, len(pairs.place), PAIRS)
    ]
    highest, total, mixed = (torch.cat(part) for part in zip(*parts, strict=True))
    joined = _join(highest, total, mixed, pairs.levels)
    return torch.empty_like(joined).index_copy_(0, pairs.order, joined).to(q.dtype)


def _attend_pairs(
    q: Tensor, pages: Tensor, pairs: Pairs, some: slice, scale: float, kv_lora_rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum, the sum (PAIRS, H, 1) and the mixture (PAIRS, H, C) of some pairs, float32."""
    latents = _in_lines(pages.index_select(0, pairs.page[some]))  # (PAIRS, 64, W')
    queries = _in_lines(q.index_select(0, pairs.place[some]))  # (PAIRS, H, W')
    scores = torch.bmm(queries, latents.transpose(1, 2)).float().mul_(scale)
    scores.masked_fill_(pairs.hidden[some], -torch.inf)  # (PAIRS, H, 64)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    C = kv_lora_rank + _missing(kv_lora_rank, q)  # of which kv_lora_rank are wanted
    mixed = torch.bmm(weights.to(q.dtype), latents[..., :C])[..., :kv_lora_rank].float()
    while weights.shape[-1] > 1:
        low, high = weights.chunk(2, -1)
        weights = low + high
    return highest, weights, mixed


def _in_lines(rows: Tensor) -> Tensor:
    """Rows (..., W) followed by zeros, to whole lines (..., W')."""
    missing = _missing(rows.shape[-1], rows)
    return F.pad(rows, (0, missing)) if missing else rows


def _missing(count: int, like: Tensor) -> int:
    """How many numbers lack to whole lines."""
    return -count % (LINE_BYTES // like.element_size())


def _join(highest: Tensor, total: Tensor, mixed: Tensor, levels: list[int]) -> Tensor:
    """Maxima and sums (M, H, 1) and mixtures (M, H, C) of all pairs -> (T, H, C) float32."""
    starts = [sum(levels[:level]) for level in range(len(levels))]
    T = levels[0]
    top = highest[:T].clone()
    for start, count in zip(starts, levels, strict=True):
        torch.maximum(top[:count], highest[start : start + count], out=top[:count])
    numerator, denominator = torch.zeros_like(mixed[:T]), torch.zeros_like(total[:T])
    for start, count in zip(starts, levels, strict=True):
        rows = slice(start, start + count)
        factor = (highest[rows] - top[:count]).exp_()
        numerator[:count] += mixed[rows] * factor
        denominator[:count] += total[rows] * factor
    return numerator / denominator


class Extents(NamedTuple):
    """Sequences for `native_attention`; s has the queries offsets[s] to offsets[s + 1] - 1."""

    table: np.ndarray  # (S, P) int32: the pages of each in order, then anything
    starts: np.ndarray  # (S,) int64: the position of its first query
    offsets: np.ndarray  # (S+1,) int64


def twin(pages: Tensor) -> Native | None:
    """The native twin, where it can read such pages."""
    if pages.device.type != "cpu" or pages.dtype not in _KINDS:
        return None
    return native("latent_attention")


def native_attention(
    function: Native, q: Tensor, pages: Tensor, extents: Extents, scale: float, kv_lora_rank: int
) -> Tensor:
    """q (T, H, W), pages (N, 64, W) or of int8 (N, bytes) -> (T, H, C), float32 inside.

    `function` is what `twin` gave. What a query gets depends on nothing but itself, its position
    and its own latents, to the last bit.
    """
    T, H, W = q.shape
    table, starts, offsets = extents
    out = torch.empty(T, H, kv_lora_rank)
    function(
        q.float().contiguous(), pages, _KINDS[pages.dtype], pages[0].nbytes, kv_lora_rank,
        W - kv_lora_rank, table, table.shape[1], starts, offsets, len(starts), H, scale, out,
        torch.get_num_threads(),
    )  # fmt: skip
    return out.to(q.dtype)
