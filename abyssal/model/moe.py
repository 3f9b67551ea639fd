"""Mixture of experts: every token meets one shared expert and K of E routed ones.

    y = shared(x) + sum over chosen i of weight_i * expert_i(x)        eq. 12

DeepSeek-V3 (arXiv 2412.19437), section 2.1.2. Letters in shape comments:

    T tokens    D hidden_size    E n_routed_experts    K num_experts_per_tok    G n_group
    F moe_intermediate_size
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abyssal.config import ModelConfig
from abyssal.kernels.experts import routed_experts
from abyssal.kernels.router import Rule, route
from abyssal.model.layers import MLP


class Routing(NamedTuple):
    """Where each token goes."""

    experts: Tensor  # (T, K) int64, each in [0, E)
    weights: Tensor  # (T, K) float32, each row sums to routed_scaling_factor
    affinity: Tensor  # (T, E) float32 in (0, 1): the sigmoid scores, without the bias


class Gate(nn.Module):
    """Choose K of E experts per token, balanced by a bias instead of a loss (eq. 13-16)."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.rule = Rule(
            num_experts_per_tok=config.num_experts_per_tok,
            n_group=config.n_group,
            topk_group=config.topk_group,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
        )
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        # No gradient reaches this bias; train/balance.py nudges it after every step.
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, x: Tensor) -> Routing:
        """x (T, D) -> the experts of every token, and the weights to mix them with."""
        logits = F.linear(x.float(), self.weight.float())  # (T, E)
        return Routing(*route(logits, self.e_score_correction_bias, self.rule))


class Experts(nn.Module):
    """The weights of E experts, stacked; gate rows before up rows."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        E, D, F = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D) -> the weighted sum of each token's experts (T, D)."""
        experts, weights, _ = routing
        return routed_experts(x, experts, weights, self.gate_up_proj, self.down_proj)


class MoE(nn.Module):
    """A shared expert for all tokens and routed ones for each."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = MLP(config.hidden_size, width) if width else None

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x (T, D) -> (T, D), and who went where."""
        routing = self.gate(x)
        y: Tensor = self.experts(x, routing)
        return (y if self.shared_experts is None else y + self.shared_experts(x)), routing
