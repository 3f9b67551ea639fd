"""Latents as integers: what a page of int8 holds, and how it comes to hold it.

A page is bytes: 64 rows of W integers, then 64 pairs of scales in bfloat16, one for c and one for
k_rope, then for each row a bit for every 4 numbers of k_rope, set where these count in halves of
their scale. Turned pairs of one frequency are of like size, those of others may be several times
as large, and all heads' scores feel what the rotary part lacks.

The native twin is latent_pages.h.

    T tokens    W latent size, C + R    C kv_lora_rank    R qk_rope_head_dim    N pages
    S scales that are tried    B bytes of a token's bits
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from abyssal.kernels.registry import native

PAGE_SIZE = 64  # tokens of a page
INT8 = 2  # of LatentKind in latent_pages.h
HALVED = 4  # numbers of k_rope that count in halves of their scale, or do not, together
CANDIDATES = 16  # scales that are tried
POINT = 13  # bits behind the point of a number over its scale
DROPPED = 3  # ... of which an error does without these


class Integers(NamedTuple):
    """Latents as int8 pages hold them."""

    rows: Tensor  # (T, W) int8 within +-127
    scales: Tensor  # (T, 2) bfloat16, of c and of k_rope
    halves: Tensor  # (T, B) uint8, lowest bit first; where one is set, four count in halves


def integer_bytes(width: int, kv_lora_rank: int) -> int:
    """What a token takes in int8 pages."""
    return width + 4 + _halves_bytes(width - kv_lora_rank)


def quantize(latents: Tensor, kv_lora_rank: int) -> Integers:
    """latents (T, W) -> integers and scales: c has one scale, k_rope another, it is much larger.

    A scale is that of the 16 bfloat16 numbers from a 127th of the largest number on which leaves
    the least squared error. A part that is not finite gets scale nan.
    """
    c, k_rope = latents.float().tensor_split([kv_lora_rank], 1)
    rows, scale, _ = _quantize(c, halving=False)
    rotary, rotary_scale, halved = _quantize(k_rope, halving=True)
    size = _halves_bytes(k_rope.shape[1])
    bits = halved.new_zeros(len(halved), 8 * size)
    bits[:, : halved.shape[1]] = halved
    weights = 2 ** torch.arange(8, device=bits.device)
    halves = (bits.unflatten(1, (size, 8)) * weights).sum(-1).to(torch.uint8)
    return Integers(torch.cat([rows, rotary], 1), torch.stack([scale, rotary_scale], 1), halves)


def _quantize(x: Tensor, *, halving: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, n) -> integers (T, n), scales (T,) and which blocks count in halves (T, n/4) bool.

    All is done on fixed-point numbers, whose sums do not depend on their order.
    """
    T, n = x.shape
    num_blocks = -(-n // HALVED)
    if not n:
        empty = x.new_zeros(T, 0, dtype=torch.bool)
        return x.to(torch.int8), x.new_zeros(T, dtype=torch.bfloat16), empty
    highest = x.abs().amax(-1, keepdim=True)
    is_finite = highest.isfinite()
    bits = (highest / 127).where(is_finite, 0).view(torch.int32)
    bits = bits + 0xFFFF & ~0xFFFF  # its lower half is what bfloat16 lacks
    scales = (bits + 0x10000 * torch.arange(CANDIDATES, device=x.device, dtype=torch.int32)).view(
        torch.float32
    )
    base = scales[:, :1]
    is_there = is_finite & (base > 0)
    ratio = base / scales * 2**POINT
    fixed = torch.where(is_there, x / base, 0).unsqueeze(1) * ratio.nan_to_num().unsqueeze(-1)
    fixed = F.pad(fixed.round_().int(), (0, num_blocks * HALVED - n))
    blocks = fixed.unflatten(-1, (num_blocks, HALVED))  # (T, S, n/4, 4)
    error = 4 * _squared_errors(blocks)
    halved = torch.zeros_like(error, dtype=torch.bool)
    if halving:
        halved = 2 * blocks.abs().amax(-1) < (127 << POINT) + (1 << POINT - 1)
        error = torch.where(halved, _squared_errors(2 * blocks), error)
    best = (error.sum(-1) * scales.double().square()).argmin(-1)  # (T,)
    chosen = torch.arange(T, device=x.device), best
    doubled = blocks[chosen] * (1 + halved[chosen].int().unsqueeze(-1))
    integers = _whole(doubled).flatten(1)[:, :n].to(torch.int8)
    scale = scales[chosen].where(is_there.squeeze(-1), 0).where(is_finite.squeeze(-1), torch.nan)
    return integers, scale.to(torch.bfloat16), halved[chosen] & is_there


def _whole(fixed: Tensor) -> Tensor:
    """The integer next to each fixed-point number."""
    return fixed + (1 << POINT - 1) >> POINT


def _squared_errors(blocks: Tensor) -> Tensor:
    """What the integers next to blocks (..., 4) lack, squared -> (...) int64."""
    return (blocks - (_whole(blocks) << POINT) >> DROPPED).long().square().sum(-1)


def _halves_bytes(rotary: int) -> int:
    """Whole bytes of a token's bits."""
    return -(-rotary // (8 * HALVED))


def integers_of(pages: Tensor, width: int, kv_lora_rank: int) -> Integers:
    """Views of int8 pages (N, bytes): rows (N, 64, W), scales (N, 64, 2), halves (N, 64, B)."""
    size = _halves_bytes(width - kv_lora_rank)
    rows, scales, halves = pages.split([PAGE_SIZE * n for n in (width, 4, size)], 1)
    return Integers(
        rows.unflatten(-1, (PAGE_SIZE, width)),
        scales.view(torch.bfloat16).unflatten(-1, (PAGE_SIZE, 2)),
        halves.view(torch.uint8).unflatten(-1, (PAGE_SIZE, size)),
    )


def append_integers(pages: Tensor, places: Tensor, latents: Tensor, kv_lora_rank: int) -> None:
    """Write latents (T, W) to int8 pages; places (T,) int64 count tokens from the first page on."""
    T, W = latents.shape
    function = native("latent_append") if pages.device.type == "cpu" else None
    if function is not None:
        function(
            latents.float().contiguous(), pages, INT8, pages[0].nbytes, kv_lora_rank,
            W - kv_lora_rank, places, T,
        )  # fmt: skip
        return
    where = places // PAGE_SIZE, places % PAGE_SIZE
    stored, values = integers_of(pages, W, kv_lora_rank), quantize(latents, kv_lora_rank)
    for view, numbers in zip(stored, values, strict=True):
        view.index_put_(where, numbers)


def dequantize(pages: Tensor, width: int, kv_lora_rank: int) -> Tensor:
    """int8 pages (N, bytes) -> (N, 64, W) float32."""
    rows, scales, halves = integers_of(pages, width, kv_lora_rank)
    R = width - kv_lora_rank
    shift = torch.arange(8, device=pages.device)
    bits = (halves.unsqueeze(-1) >> shift & 1).flatten(-2)  # (N, 64, 8 B)
    steps = 1 - 0.5 * bits.repeat_interleave(HALVED, -1)[..., :R]
    c, k_rope = rows.tensor_split([kv_lora_rank], -1)
    scale, rotary = scales.float().split(1, -1)
    return torch.cat([c * scale, k_rope * (rotary * steps)], -1)
