"""The product of two FP8 matrices, its sums promoted to float32 after every 128 inputs.

    out = sum over tiles k of (A_k B_k^T) s_A[row, k] s_B[output, k]

DeepSeek-V3 (arXiv 2412.19437), section 3.3.2. The tensor cores of an H800 keep about 14 bits of a
sum, so every 128 inputs (four WGMMA) it goes to the CUDA cores, is multiplied by the two scales
there and added up in float32. ``reference`` is the definition: 8-bit numbers are exact in float32,
and so are their products. ``product`` computes it natively (fp8.cpp) or by Triton (fp8_triton.py);
it differs by the order of float32 sums. ``unpromoted`` is what happens without promotion.

    M rows    N outputs    K inputs
"""

import torch
from torch import Tensor

from abyssal.float8 import E5M2
from abyssal.kernels.fp8_tiles import TILE, Tiled
from abyssal.kernels.registry import native


def reference(a: Tiled, b: Tiled) -> Tensor:
    """a (M, K) times b (N, K) transposed -> (M, N) float32."""
    (M, K), N = a.numbers.shape, len(b.numbers)
    out = torch.zeros(M, N, device=a.scale.device)
    for k in range(-(-K // TILE)):
        inputs = slice(k * TILE, (k + 1) * TILE)
        sums = a.numbers[:, inputs].float() @ b.numbers[:, inputs].float().T
        out += sums * _of_rows(a, k)[:, None] * _of_rows(b, k)
    return out


def product(a: Tiled, b: Tiled, out: Tensor | None = None, *, add: bool = False) -> Tensor:
    """`reference` by what this device has; into (or, with `add`, onto) `out` where it is given."""
    if a.numbers.device.type == "cuda":
        from abyssal.kernels import fp8_triton

        operands = (t.contiguous() for t in (a.numbers, a.scale, b.numbers, b.scale))
        x, scale_x, y, scale_y = operands
        return _into(out, fp8_triton.product(x, scale_x, a.rows, y, scale_y, b.rows), add)
    run = native("fp8_product")
    if run is None or not a.numbers.numel() or not b.numbers.numel():
        return _into(out, reference(a, b), add)
    (M, K), N = a.numbers.shape, len(b.numbers)
    out = torch.empty(M, N) if out is None else out
    run(*_operand(a), *_operand(b), M, N, K, out, out.stride(0), add, torch.get_num_threads())
    return out


def unpromoted(a: Tiled, b: Tiled, *, bits: int = 14, group: int = 32) -> Tensor:
    """The same where sums stay in the tensor core, which keeps `bits` bits of them.

    Our reading of section 3.5.2: of `group` products (one instruction's) the mantissas are aligned
    to the largest exponent among them and the sum so far, and what lies below `bits` bits is cut
    off; then they are added, exactly. Needs one scale for all inputs of a row: spread "tensor" or
    a single tile.
    """
    x, y = a.numbers.float(), b.numbers.float()
    assert (a.scale == a.scale[:, :1]).all(), "scales cannot be applied inside a sum"
    assert (b.scale == b.scale[:, :1]).all(), "scales cannot be applied inside a sum"
    total = x.new_zeros(len(x), len(y))
    for k in range(0, x.shape[1], group):
        parts = x[:, None, k : k + group] * y[None, :, k : k + group]  # (M, N, group), exact
        total = aligned_sum(torch.cat([parts, total[..., None]], -1), bits)
    return total * _of_rows(a, 0)[:, None] * _of_rows(b, 0)


def promoted(a: Tiled, b: Tiled, *, bits: int = 14, group: int = 32) -> Tensor:
    """`reference` on a core that keeps `bits` bits of the sum over each tile."""
    out = a.scale.new_zeros(len(a.numbers), len(b.numbers))
    for k in range(-(-a.numbers.shape[1] // TILE)):
        inputs = slice(k * TILE, (k + 1) * TILE)
        one, other = (
            Tiled(t.numbers[:, inputs], torch.ones_like(t.scale[:, :1]), t.rows) for t in (a, b)
        )
        sums = unpromoted(one, other, bits=bits, group=group)
        out += sums * _of_rows(a, k)[:, None] * _of_rows(b, k)
    return out


def aligned_sum(parts: Tensor, bits: int) -> Tensor:
    """The sum of the last dimension, of each number only the bits within `bits` of the largest."""
    largest = parts.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent - bits  # of the last bit that is kept
    last = torch.ldexp(torch.ones_like(largest), exponent)
    return ((parts / last).trunc() * last).sum(-1)


def _of_rows(x: Tiled, k: int) -> Tensor:
    """The scale of tile k of every row."""
    scale = x.scale[:, k]
    return scale.repeat_interleave(TILE)[: len(x.numbers)] if x.rows == TILE else scale


def _into(out: Tensor | None, found: Tensor, add: bool) -> Tensor:
    if out is None:
        return found
    return out.add_(found) if add else out.copy_(found)


def _operand(x: Tiled) -> tuple[Tensor, Tensor, int, int]:
    numbers, scale = x.numbers.contiguous(), x.scale.contiguous()
    return numbers, scale, x.rows, int(numbers.dtype == E5M2.dtype)
