"""AdamW on one parameter, and what happens to gradients before: their sum, their norm, a factor.

    m = b1 m + (1-b1) g    v = b2 v + (1-b2) g^2        Loshchilov & Hutter (2019)
    w -= lr (m^ / (sqrt(v^) + eps) + decay w)

``reference`` is the definition. ``adamw`` computes the same in one pass over memory, and writes the
working copy on the way.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from abyssal.kernels.registry import Native, native
from abyssal.kernels.rows import is_bf16

_TYPES = (torch.bfloat16, torch.float32)


class Rates(NamedTuple):
    """How far one step goes."""

    lr: float
    decay: float
    betas: tuple[float, float]
    eps: float
    steps: int  # this one included, from 1


def reference(master: Tensor, grad: Tensor, first: Tensor, second: Tensor, rates: Rates) -> None:
    """Move a float32 master and its moments, in their own precision, by a float32 gradient."""
    b1, b2 = rates.betas
    m = first.float().lerp_(grad, 1 - b1)
    v = second.float().mul_(b2).addcmul_(grad, grad, value=1 - b2)
    first.copy_(m)
    second.copy_(v)
    master.mul_(1 - rates.lr * rates.decay)
    # The root is a new tensor: v itself is the saved moment where moments are float32.
    denominator = v.sqrt().div_(math.sqrt(1 - b2**rates.steps)).add_(rates.eps)
    master.addcdiv_(m, denominator, value=-rates.lr / (1 - b1**rates.steps))


def adamw(
    master: Tensor,
    grad: Tensor | None,
    scale: float,
    first: Tensor,
    second: Tensor,
    working: Tensor,
    rates: Rates,
) -> None:
    """Move master, moments and the working copy by grad * scale; no gradient is one of zeros.

    The working copy of a float32 model is the master itself.
    """
    function = _flat("adamw", master, first, second, *([] if grad is None else [grad]))
    shadow = None if working.data_ptr() == master.data_ptr() else working
    is_written = shadow is None or (shadow.dtype == torch.bfloat16 and shadow.is_contiguous())
    if function is None or not is_written:
        g = torch.zeros_like(master) if grad is None else grad.float() * scale
        reference(master, g, first, second, rates)
        if shadow is not None:
            shadow.copy_(master)
        return
    b1, b2 = rates.betas
    function(
        master, grad, 0 if grad is None else is_bf16(grad), scale, first, second, is_bf16(first),
        shadow, master.numel(), rates.lr / (1 - b1**rates.steps), 1 - rates.lr * rates.decay, b1,
        b2, rates.eps, math.sqrt(1 - b2**rates.steps), torch.get_num_threads(),
    )  # fmt: skip


def norm(tensors: Sequence[Tensor]) -> float:
    """The square root of the sum of all squares, which may be inf or nan."""
    function = _flat("sum_of_squares", *tensors)
    if not tensors:
        return 0.0
    if function is None:
        return float(torch.stack([t.float().norm() for t in tensors]).norm())
    total = np.zeros(1)
    for tensor in tensors:
        function(tensor, total, tensor.numel(), is_bf16(tensor), torch.get_num_threads())
    return math.sqrt(total[0])


def add(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """x + y in float32, into `out`, which may be x."""
    function = _flat("sum", x, y, out)
    if function is None:
        return torch.add(x.float(), y, out=out)
    function(x, is_bf16(x), y, is_bf16(y), out, out.numel(), torch.get_num_threads())
    return out


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x times a number, in another precision."""
    function = _flat("scaled", x)
    if function is None or x.dtype != torch.float32 or dtype != torch.bfloat16:
        return (x * factor).to(dtype)
    out = torch.empty_like(x, dtype=dtype)
    function(x, float(factor), out, x.numel(), torch.get_num_threads())
    return out


def _flat(name: str, *tensors: Tensor) -> Native | None:
    """The native function for contiguous tensors on the CPU in BF16 or float32; else None."""
    fits = all(t.device.type == "cpu" and t.dtype in _TYPES and t.is_contiguous() for t in tensors)
    return native(name) if fits else None
