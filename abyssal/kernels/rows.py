"""What the kernels that work on rows share: when their native twins fit, and tensors as rows.

T rows    D size of the last dimension
"""

import torch
from torch import Tensor

from abyssal.kernels.registry import Native, native

_TYPES = (torch.bfloat16, torch.float32)


def twin(name: str, *tensors: Tensor) -> Native | None:
    """The native function for tensors on the CPU, all of them BF16 or all float32; else None."""
    kind = tensors[0].dtype
    if kind in _TYPES and all(t.dtype == kind and t.device.type == "cpu" for t in tensors):
        return native(name)
    return None


def is_bf16(x: Tensor) -> int:
    """1 or 0, as native functions take it."""
    return int(x.dtype == torch.bfloat16)


def as_rows(x: Tensor) -> tuple[Tensor, int]:
    """x (..., D) as rows (T, D) of contiguous numbers, and how many numbers apart they begin."""
    if x.ndim == 2 and x.stride(1) == 1:
        return x, x.stride(0)
    return x.contiguous().view(-1, x.shape[-1]), x.shape[-1]
