"""FP8 tiles and products on a GPU, in Triton: the twins of fp8_tiles.py and fp8_product.py.

A program of the product multiplies 128 inputs at a time, into sums that begin anew each time: the
tensor cores' own, of fewer bits. Then it multiplies by the two scales and adds up in float32, which
is the promotion of section 3.3.2 (DeepSeek-V3, arXiv 2412.19437). Divisions are rounded as IEEE
says, so bytes and scales are those of the definition. On a machine without a GPU Triton's
interpreter computes the same (TRITON_INTERPRET=1), which is how the tests run.

    R rows    C columns    B tiles of a row    M, N, K as in fp8_product.py
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from abyssal.float8 import E5M2, Format

TILE = 128
ROWS = 32  # of a program that quantizes
BLOCK_M, BLOCK_N = 64, 64  # of a program that multiplies; 4 warps hold their sums


def amax(x: Tensor) -> Tensor:
    """The largest magnitude of each tile of x (R, C) -> (R, B) float32."""
    rows, width = x.shape
    across = triton.cdiv(width, TILE)
    out = torch.empty(rows, across, device=x.device)
    _amax[triton.cdiv(rows, ROWS), across](
        x, out, rows, width, x.stride(0), x.stride(1), across, TILE=TILE, ROWS=ROWS
    )
    return out


def encode(x: Tensor, scale: Tensor, form: Format) -> Tensor:
    """x (R, C) and the scales of its tiles (R, B) -> numbers (R, C)."""
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=form.dtype, device=x.device)
    across = triton.cdiv(width, TILE)
    _encode[triton.cdiv(rows, ROWS), across](
        x, scale, out.view(torch.uint8), rows, width, x.stride(0), x.stride(1), across,
        LARGEST=form.largest, IS_E5M2=form == E5M2, TILE=TILE, ROWS=ROWS,
    )  # fmt: skip
    return out


def product(
    a: Tensor, scale_a: Tensor, rows_a: int, b: Tensor, scale_b: Tensor, rows_b: int
) -> Tensor:
    """a (M, K) times b (N, K) transposed -> (M, N) float32; `rows_a` rows of a share their scales
    (M / rows_a, B), as `rows_b` of b do.
    """
    (M, K), N = a.shape, len(b)
    out = torch.empty(M, N, device=a.device)
    _product[triton.cdiv(M, BLOCK_M), triton.cdiv(N, BLOCK_N)](
        a, scale_a, b, scale_b, out, M, N, K, triton.cdiv(K, TILE),
        ROWS_A=rows_a, ROWS_B=rows_b, TILE=TILE, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    return out


@triton.jit
def _amax(x, out, rows, width, stride, step, across, TILE: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    there = (row < rows)[:, None] & (column < width)[None, :]
    numbers = tl.load(x + row[:, None] * stride + column[None, :] * step, mask=there, other=0.0)
    most = tl.max(tl.abs(numbers.to(tl.float32)), axis=1)
    tl.store(out + row * across + tile, most, mask=row < rows)


@triton.jit
def _encode(
    x, scale, out, rows, width, stride, step, across,
    LARGEST: tl.constexpr, IS_E5M2: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(1)
    column = tile * TILE + tl.arange(0, TILE)
    there = (row < rows)[:, None] & (column < width)[None, :]
    numbers = tl.load(x + row[:, None] * stride + column[None, :] * step, mask=there, other=0.0)
    of_row = tl.load(scale + row * across + tile, mask=row < rows, other=1.0)
    number = tl.div_rn(numbers.to(tl.float32), tl.broadcast_to(of_row[:, None], (ROWS, TILE)))
    number = tl.minimum(tl.maximum(number, -LARGEST), LARGEST)
    tl.store(out + row[:, None] * width + column[None, :], _byte(number, IS_E5M2), mask=there)


@triton.jit
def _byte(number, IS_E5M2: tl.constexpr):
    """To the nearest number of the format, ties to even, by arithmetic on bits.

    Triton's own casts round otherwise in the interpreter and on some GPUs (issues 8322, 11753).
    """
    drop: tl.constexpr = 21 if IS_E5M2 else 20  # bits of mantissa that go
    bias: tl.constexpr = 112 << 2 if IS_E5M2 else 120 << 3
    least: tl.constexpr = 2.0**-14 if IS_E5M2 else 2.0**-6  # that is normal
    magic: tl.constexpr = 2.0**7 if IS_E5M2 else 2.0**14  # whose last bit is the least number
    bits = number.to(tl.int32, bitcast=True)
    size = tl.abs(number)
    a = bits & 0x7FFFFFFF
    normal = ((a + ((1 << (drop - 1)) - 1) + ((a >> drop) & 1)) >> drop) - bias
    magic_bits: tl.constexpr = (127 + 7) << 23 if IS_E5M2 else (127 + 14) << 23
    small = (size + magic).to(tl.int32, bitcast=True) - magic_bits
    byte = tl.where(a > 0x7F800000, 0x7F, tl.where(size < least, small, normal))
    return (byte | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _product(
    a, scale_a, b, scale_b, out, M, N, K, across,
    ROWS_A: tl.constexpr, ROWS_B: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for tile in range(across):
        k = tile * TILE + tl.arange(0, TILE)
        left = tl.load(
            a + row[:, None] * K + k[None, :],
            mask=(row < M)[:, None] & (k < K)[None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(
            b + column[None, :] * K + k[:, None],
            mask=(column < N)[None, :] & (k < K)[:, None], other=0.0,
        )  # fmt: skip
        sums = tl.dot(left, right, out_dtype=tl.float32)
        of_row = tl.load(scale_a + row // ROWS_A * across + tile, mask=row < M, other=0.0)
        of_column = tl.load(scale_b + column // ROWS_B * across + tile, mask=column < N, other=0.0)
        total += sums * of_row[:, None] * of_column[None, :]
    there = (row < M)[:, None] & (column < N)[None, :]
    tl.store(out + row[:, None] * N + column[None, :], total, mask=there)
