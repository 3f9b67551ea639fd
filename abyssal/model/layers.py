"""The small parts: RMSNorm and the SwiGLU feed-forward.

DeepSeek-V3 (arXiv 2412.19437), section 2.1. Letters in shape comments:

    D hidden_size    F intermediate size
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abyssal.kernels.rms_norm import add_rms_norm, rms_norm
from abyssal.kernels.swiglu import swiglu


class RMSNorm(nn.Module):
    """Scale the last dimension to unit mean square, then by a learned gain."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D), in the precision of x."""
        return rms_norm(x, self.weight, self.eps)

    def after_adding(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x + y, and what `forward` makes of it; in one pass over both."""
        return add_rms_norm(x, y, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)); gate and up are one matrix, gate rows first."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        return F.linear(swiglu(self.gate_up_proj(x)), self.down_proj.weight)
