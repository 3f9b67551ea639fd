"""Linear layers over stored weights in five precisions: y = x W^T.

    F32, BF16   W as it is; BF16 weights meet activations rounded to BF16
    INT8        W = q * scale of its row; activations are rounded to INT8, one scale a token
    INT4        W = (n - 8) * scale of its row and group of 64 inputs; activations as for INT8
    FP8         W = e4m3 * scale of its block of 128 by 128; activations rounded to BF16

Products with INT8 and INT4 are exact in integers up to the scales. Those with FP8 are summed
block by block, as in DeepSeek-V3 (arXiv 2412.19437), section 3.3.2. ``reference`` is the
definition, on weights as they are stored; ``pack`` lays them out for the native kernel, which
``linear`` runs.

    T tokens    N output size    K input size    G = 64    Np: N up to 16
    Kp: K up to 64, or 32 in BF16
"""

import ctypes
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from abyssal.errors import KernelError
from abyssal.kernels.registry import Native, native

LANES = 16  # outputs of a panel
GROUP = 64  # inputs that share a scale in INT4
BLOCK = 128  # inputs, and outputs, that share one in FP8
_TINY = 1e-30  # as in formats.h


class Kind(IntEnum):
    """The precision of a weight matrix; the numbers are those of formats.h."""

    F32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3
    FP8 = 4


_STEPS = {Kind.F32: 1, Kind.BF16: 32}  # inputs are filled up to these, or else to GROUP

_DTYPES = {
    Kind.F32: torch.float32,
    Kind.BF16: torch.bfloat16,
    Kind.INT8: torch.int8,
    Kind.INT4: torch.uint8,
    Kind.FP8: torch.float8_e4m3fn,
}


class MatStruct(ctypes.Structure):
    """`struct Mat` of formats.h. It points into tensors and does not keep them alive."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("kp", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A weight matrix (N, K) in panels, or several of one shape, stacked."""

    kind: Kind
    n: int
    k: int
    kp: int
    data: Tensor  # (..., bytes) uint8
    scale: Tensor | None  # INT8 (..., Np), INT4 (..., Kp/G, Np), FP8 (..., N/128, K/128); float32
    sum: Tensor | None  # INT8 (..., Np) int32: each output's sum over its inputs

    def __getitem__(self, index: int) -> "Packed":
        """One of stacked matrices, in the same memory."""
        parts = (x if x is None else x[index] for x in (self.data, self.scale, self.sum))
        data, scale, total = parts
        assert data is not None
        return replace(self, data=data, scale=scale, sum=total)

    def struct(self) -> MatStruct:
        """What native kernels take; good for as long as this lives."""
        pointers = (x if x is None else x.data_ptr() for x in (self.data, self.scale, self.sum))
        return MatStruct(self.kind, self.n, self.k, self.kp, *pointers)


def empty(kind: Kind, n: int, k: int, *stack: int) -> Packed:
    """Room for a matrix (N, K), or for a stack of them."""
    kp, np_ = _up(k, _STEPS.get(kind, GROUP)), _up(n, LANES)
    scale: tuple[int, ...] | None = None
    match kind:
        case Kind.INT8:
            scale = (np_,)
        case Kind.INT4:
            scale = (kp // GROUP, np_)
        case Kind.FP8:
            scale = (_up(n, BLOCK) // BLOCK, _up(k, BLOCK) // BLOCK)
    return Packed(
        kind=kind,
        n=n,
        k=k,
        kp=kp,
        data=torch.empty(*stack, _panel_bytes(kind, kp) * np_ // LANES, dtype=torch.uint8),
        scale=None if scale is None else torch.zeros(*stack, *scale),
        sum=torch.empty(*stack, np_, dtype=torch.int32) if kind is Kind.INT8 else None,
    )


def pack(kind: Kind, weight: Tensor, scale: Tensor | None = None, k: int | None = None) -> Packed:
    """A stored weight (N, K), and its scales, in panels; what is stored is as in ``pack_into``."""
    packed = empty(kind, len(weight), weight.shape[1] if k is None else k)
    pack_into(packed, weight, scale)
    return packed


def pack_into(packed: Packed, weight: Tensor, scale: Tensor | None = None) -> None:
    """Fill room for one matrix from what is stored, row after row.

    weight (N, K) in the kind's precision. INT4 is uint8, 0..15 for -8..7; if not K wide, it holds
    two numbers a byte, the even input in the low half. scale is (N,) or (N, 1) for INT8, (N, K/G)
    for INT4, (N/128, K/128) for FP8, rounded up.
    """
    kind, n, k = packed.kind, packed.n, packed.k
    halves = kind is Kind.INT4 and weight.shape[1] != k
    assert weight.dtype == _DTYPES[kind], (weight.dtype, kind)
    assert len(weight) == n, (weight.shape, n)
    assert weight.shape[1] >= (_up(k, 2) // 2 if halves else k), (weight.shape, k)
    weight = weight.contiguous()
    threads = torch.get_num_threads()
    row_bytes = weight.shape[1] * weight.element_size()
    kernel = _kernel("pack_linear")
    kernel(kind, weight, row_bytes, halves, n, k, packed.kp, packed.data, packed.sum, threads)
    if packed.scale is None:
        return
    assert scale is not None, f"{kind.name} has scales"
    match kind:
        case Kind.INT8:
            packed.scale[:n] = scale.flatten()
            packed.scale[n:] = 0
        case Kind.INT4:
            packed.scale.zero_()[: scale.shape[1], :n] = scale.T
        case _:
            packed.scale.copy_(scale)


def linear(x: Tensor, packed: Packed, threads: int | None = None, by_rows: bool = False) -> Tensor:
    """x (T, K) float32 -> (T, N) float32, threads side by side over outputs, or over tokens."""
    x = x.contiguous()
    assert x.dtype == torch.float32
    assert x.shape[1] == packed.k
    out = x.new_empty(len(x), _up(packed.n, LANES))
    mat = np.frombuffer(bytes(packed.struct()), dtype=np.int64)
    _kernel("linear")(mat, x, len(x), out, by_rows, threads or torch.get_num_threads())
    return out[:, : packed.n]


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (T, K) float32 -> q (T, K), whole numbers in -127..127, and s (T, 1): x is about q * s."""
    most = x.abs().amax(-1, keepdim=True)
    s = torch.where(most < _TINY, 0.0, most / 127)
    q = torch.where(most < _TINY, 0.0, x * (127 / most)).round()
    finite = most.isfinite()
    return q.where(finite, 0.0), s.where(finite, torch.nan)


def reference(kind: Kind, x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """x (T, K) float32 -> (T, N) float64, with one number a byte in INT4; everything else exact."""
    match kind:
        case Kind.INT8:
            assert scale is not None
            q, s = quantize(x)
            return q.double() @ weight.double().T * s * scale.flatten()
        case Kind.INT4:
            assert scale is not None
            q, s = quantize(x)
            spread = scale.double().repeat_interleave(GROUP, 1)[:, : weight.shape[1]]  # (N, K)
            return q.double() @ ((weight.double() - 8) * spread).T * s
        case Kind.FP8:
            assert scale is not None
            spread = scale.double().repeat_interleave(BLOCK, 0)[: len(weight)]
            spread = spread.repeat_interleave(BLOCK, 1)[:, : weight.shape[1]]  # (N, K)
            return x.bfloat16().double() @ (weight.double() * spread).T
        case Kind.BF16:
            return x.bfloat16().double() @ weight.double().T
        case Kind.F32:
            return x.double() @ weight.double().T


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _panel_bytes(kind: Kind, kp: int) -> int:
    """Of 16 outputs and all inputs."""
    numbers = LANES * kp
    return numbers // 2 if kind is Kind.INT4 else numbers * _DTYPES[kind].itemsize


def _kernel(name: str) -> Native:
    kernel = native(name)
    if kernel is None:
        raise KernelError("packed weights need native kernels, and this process has none")
    return kernel
