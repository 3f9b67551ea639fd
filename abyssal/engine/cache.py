"""The latent cache: pages of 64 tokens in one pool, C + R numbers per token and layer.

DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. Nothing is kept per head, and nothing here knows of
sequences between passes: `begin` is told which pages hold which tokens, and plans how the kernel
reads them. Page 0 is nobody's; it stands where a table must be filled up. In int8 each token has
two scales besides, of two bytes each, and a bit for every four rotary numbers.

    T tokens of a pass    S sequences    n tokens each brings    H heads    C kv_lora_rank
    R qk_rope_head_dim
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from abyssal.config import ModelConfig
from abyssal.engine.pages import PAGE
from abyssal.kernels.latent_attention import (
    Extents,
    Group,
    Pairs,
    fixed_attention,
    latent_attention,
    native_attention,
    plan_group,
    plan_pairs,
    twin,
)
from abyssal.kernels.latent_pages import append_integers, dequantize, integer_bytes
from abyssal.kernels.registry import Native

MOST_TOGETHER = 8  # tokens of an extent that is read together with others of its count
MOST_PADDING = 12  # pages copied in vain in a group; more cost more than another call

_ALIGNMENT = 64  # bytes: a line of the caches, and the widest vector


@dataclass(slots=True)
class Extent:
    """Tokens start .. start + count - 1 of a sequence, which a pass reads."""

    pages: Sequence[int]  # of the sequence: its i-th holds positions 64 i to 64 i + 63
    start: int
    count: int


class PagedCache:
    """A `LatentCache` over one pool of pages; whose pages they are is for `begin` to say."""

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        num_layers: int,
        fixed: bool = False,
    ):
        """`num_layers` counts MTP modules in use; with `fixed`, results do not depend on company.

        The system gives memory for a page when it is first written.
        """
        self.config, self.fixed = config, fixed
        # Zeros, not empty: a hidden position has weight 0, and 0 * nan would be nan.
        page: tuple[int, ...] = (PAGE, config.latent_size)
        if dtype == torch.int8:
            page = (self.bytes_per_page(config, 1, dtype),)
        self.pool = _zeros((num_layers, num_pages, *page), dtype, device)
        self._reads: list[_Read] = []
        self._pairs: Pairs | None = None
        self._native: tuple[Native, Extents] | None = None
        self._integers: Tensor | None = None

    def beside(self, num_pages: int, *, fixed: bool) -> "PagedCache":
        """An empty one of the same kind, for the model's own layers and no MTP module."""
        layers, pool = self.config.num_hidden_layers, self.pool
        return PagedCache(
            self.config, num_pages, pool.dtype, pool.device, num_layers=layers, fixed=fixed
        )

    @staticmethod
    def bytes_per_page(config: ModelConfig, num_layers: int, dtype: torch.dtype) -> int:
        """What one page takes in all layers."""
        token = config.latent_size * dtype.itemsize
        if dtype == torch.int8:
            token = integer_bytes(config.latent_size, config.kv_lora_rank)
        return num_layers * PAGE * token

    @property
    def bytes_per_token(self) -> int:
        """What one token takes in all layers, those of MTP modules in use included."""
        return self.pool[:, 0].numel() * self.pool.element_size() // PAGE

    @property
    def unfolded_bytes_per_token(self) -> int:
        """What it would take if every head kept its own key and value, in the same precision.

        The scales that integers need are not counted.
        """
        config = self.config
        width = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
        return len(self.pool) * width * self.pool.element_size()

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy whole pages, all layers of them: (from, to) each, one after the other."""
        for source, target in pairs:
            self.pool[:, target] = self.pool[:, source]

    def begin(self, extents: Sequence[Extent]) -> None:
        """Plan a pass over these tokens, in the order of the batch.

        Several extents may continue each other in one sequence: all latents of a pass are written
        before any is read.
        """
        device = self.pool.device
        spans = [(e.pages, range(e.start, e.start + e.count)) for e in extents]
        places = [pages[p // PAGE] * PAGE + p % PAGE for pages, span in spans for p in span]
        self._places = torch.from_numpy(np.array(places)).to(device)  # (T,) rows of a layer
        fresh = {place // PAGE for place in places if place % PAGE == 0}
        self._fresh = torch.tensor(list(fresh), device=device) if fresh else None
        self._native = self._integers = None
        if (function := twin(self.pool)) is not None:
            self._native = function, _plan_extents(extents)
            return
        if self.pool.dtype == torch.int8:  # pages in use become floats, in an order of their own
            used = sorted({0}.union(*(extent.pages for extent in extents)))
            self._integers = torch.tensor(used, device=device)
            order = {page: i for i, page in enumerate(used)}
            extents = [Extent([order[p] for p in e.pages], e.start, e.count) for e in extents]
        if self.fixed:
            self._pairs = _plan_pairs(extents, device)
        else:
            self._reads = _plan_reads(extents, device)

    def append(self, layer: int, latents: Tensor) -> None:
        """Remember the latents (T, C+R) of this pass."""
        if self._fresh is not None:
            # Hidden positions have weight 0, but 0 times what a stranger left there may be nan.
            self.pool[layer].index_fill_(0, self._fresh, 0)
        if self.pool.dtype == torch.int8:
            append_integers(self.pool[layer], self._places, latents, self.config.kv_lora_rank)
        else:
            self.pool[layer].flatten(0, 1).index_copy_(0, self._places, latents.to(self.pool.dtype))

    def attend(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """q (T, H, C+R) against all its sequence has cached so far -> mixed latents (T, H, C)."""
        pages, C = self.pool[layer], self.config.kv_lora_rank
        if self._native is not None:
            function, extents = self._native
            return native_attention(function, q, pages, extents, scale, C)
        if self._integers is not None:
            pages = dequantize(pages.index_select(0, self._integers), q.shape[-1], C).to(q.dtype)
        if self._pairs is not None:
            return fixed_attention(q, pages, self._pairs, scale, C)
        out = q.new_empty(*q.shape[:2], C)
        for rows, group in self._reads:
            queries = q[rows].unflatten(0, (len(group.table), -1))  # (S, n, H, C+R)
            out[rows] = latent_attention(queries, pages, group, scale, C).flatten(0, 1)
        return out


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU memory is taken when it is first written, where torch.zeros writes it all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return torch.from_numpy(raw[start : start + num_bytes]).view(dtype).view(shape)


class _Read(NamedTuple):
    """One call of the kernel: the rows of the batch it serves."""

    rows: slice | Tensor  # (S*n,)
    group: Group


def _plan_extents(extents: Sequence[Extent]) -> Extents:
    """Each by itself, in the order of the batch."""
    table = _table(extents, max(e.start + e.count - 1 for e in extents) // PAGE + 1)
    starts = np.array([extent.start for extent in extents])
    offsets = np.array([0, *accumulate(extent.count for extent in extents)])
    return Extents(table.astype(np.int32), starts, offsets)


def _plan_pairs(extents: Sequence[Extent], device: torch.device) -> Pairs:
    """Every token is its own query."""
    positions = [p for e in extents for p in range(e.start, e.start + e.count)]
    table = _table(extents, max(positions) // PAGE + 1)
    counts = [extent.count for extent in extents]
    return plan_pairs(table.repeat(counts, 0), np.array(positions), PAGE, device)


def _plan_reads(extents: Sequence[Extent], device: torch.device) -> list[_Read]:
    """Group extents of one count and of like length."""
    offsets = [0, *accumulate(extent.count for extent in extents)]
    needs = [(e.start + e.count - 1) // PAGE + 1 for e in extents]
    reads = []
    for chosen in _alike([extent.count for extent in extents], needs):
        some = [extents[i] for i in chosen]
        table = _table(some, needs[chosen[-1]])
        starts = np.array([extent.start for extent in some])
        n = some[0].count
        rows = _rows([offsets[i] for i in chosen], n, device)
        reads.append(_Read(rows, plan_group(table, starts, n, PAGE, device)))
    return reads


def _alike(counts: list[int], needs: list[int]) -> list[list[int]]:
    """Group numbers of extents: one count, and as many pages as padding does not cost too much."""
    groups: list[list[int]] = []
    padding = 0
    for i in sorted(range(len(counts)), key=lambda i: (counts[i], needs[i])):
        if groups and counts[i] == counts[groups[-1][0]] <= MOST_TOGETHER:
            padding += len(groups[-1]) * (needs[i] - needs[groups[-1][-1]])
            if padding <= MOST_PADDING:
                groups[-1].append(i)
                continue
        groups.append([i])
        padding = 0
    return groups


def _table(extents: Sequence[Extent], length: int) -> np.ndarray:
    """The pages (S, length) of each extent, as far as it reads, then the scratch page."""
    table = []
    for extent in extents:
        pages = extent.pages[: (extent.start + extent.count - 1) // PAGE + 1]
        table.append([*pages, *[0] * (length - len(pages))])
    return np.array(table)


def _rows(offsets: list[int], n: int, device: torch.device) -> slice | Tensor:
    """The rows of n tokens from each offset; a slice where they follow each other."""
    first, end = offsets[0], offsets[-1] + n
    if offsets == list(range(first, end, n)):
        return slice(first, end)
    rows = np.array(offsets)[:, None] + np.arange(n)
    return torch.from_numpy(rows.reshape(-1)).to(device)
