"""FP8 training, done to a model from outside: its linear layers and experts exchanged.

Exchanged are all projections of attention (also q_a, q_b, kv_a, kv_b), feed-forwards and routed
experts, in blocks and in the blocks of MTP modules. What DeepSeek-V3 (arXiv 2412.19437, section
3.3.1) keeps stays as it is: embedding, head, router, norms, the core of attention, and eh_proj,
which the released checkpoint has in BF16.

The exchanged matrices are float32, their own masters: what is multiplied is made of them anew in
every pass, and their gradients come in float32. In ``eval()`` a model computes as it will be
published, without FP8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abyssal.kernels.experts import routed_experts
from abyssal.kernels.fp8_experts import fp8_experts, fp8_mlp
from abyssal.kernels.fp8_linear import fp8_linear
from abyssal.kernels.fp8_tiles import Fp8 as Fp8
from abyssal.kernels.swiglu import swiglu
from abyssal.model.attention import MLA
from abyssal.model.layers import MLP
from abyssal.model.moe import Experts, Routing
from abyssal.model.transformer import DeepSeekV3


class Fp8Linear(nn.Module):
    """A linear layer that trains in FP8."""

    def __init__(self, plain: nn.Linear, how: Fp8, after_attention: bool):
        super().__init__()
        self.how, self.after_attention = how, after_attention
        self.weight = plain.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (T, I) -> (T, O)."""
        if not self.training:
            return F.linear(x, self.weight.to(x.dtype))
        return fp8_linear(x, self.weight, self.how, after_attention=self.after_attention)


class Fp8MLP(nn.Module):
    """A SwiGLU feed-forward that trains in FP8."""

    def __init__(self, plain: MLP, how: Fp8):
        super().__init__()
        self.how = how
        self.gate_up_proj, self.down_proj = plain.gate_up_proj, plain.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, D)."""
        gate_up, down = self.gate_up_proj.weight, self.down_proj.weight
        if not self.training:
            return F.linear(swiglu(F.linear(x, gate_up.to(x.dtype))), down.to(x.dtype))
        return fp8_mlp(x, gate_up, down, self.how)


class Fp8Experts(Experts):
    """Routed experts that train in FP8."""

    def __init__(self, plain: Experts, how: Fp8):
        nn.Module.__init__(self)
        self.how = how
        self.gate_up_proj, self.down_proj = plain.gate_up_proj, plain.down_proj

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D) -> the weighted sum of each token's experts (T, D)."""
        gate_up, down = self.gate_up_proj, self.down_proj
        experts, weights, _ = routing
        if not self.training:
            return routed_experts(x, experts, weights, gate_up.to(x.dtype), down.to(x.dtype))
        return fp8_experts(x, experts, weights, gate_up, down, self.how)


def apply(model: DeepSeekV3, how: Fp8) -> None:
    """Exchange the modules of a model that train in FP8, and make their matrices float32."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(module, MLA) and isinstance(child, nn.Linear):
                setattr(module, name, Fp8Linear(child, how, after_attention=name == "o_proj"))
            elif isinstance(child, MLP):
                setattr(module, name, Fp8MLP(child, how))
            elif isinstance(child, Experts):
                setattr(module, name, Fp8Experts(child, how))
    _cast(model, torch.float32)


def settle(model: DeepSeekV3, dtype: torch.dtype) -> None:
    """Give the matrices of a model that trained in FP8 the precision it is published in."""
    _cast(model, dtype)
    model.eval()


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        if isinstance(module, Fp8Linear | Fp8MLP | Fp8Experts):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)
