"""Routing: which experts a token goes to, and how much each of them counts.

    affinity = sigmoid(logits)                           eq. 15
    experts = the K greatest of affinity + bias          eq. 16, within the best groups only
    weights = affinity of the experts, over their sum    eq. 13

DeepSeek-V3 (arXiv 2412.19437), section 2.1.2. ``reference`` is the definition; ``route`` is the
same in one pass, with a backward of its own. Among equal scores its native twin takes the lowest
index, while torch.topk leaves open which one; to both a NaN is the greatest of all.

    T tokens    E experts    K experts per token    G groups
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.kernels.registry import native


class Rule(NamedTuple):
    """How many are chosen, from where, and what their weights sum to."""

    num_experts_per_tok: int
    n_group: int = 1
    topk_group: int = 1  # groups whose two best experts sum to most; the others are out
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0


def reference(logits: Tensor, bias: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """logits (T, E), bias (E) -> experts (T, K) int64, weights (T, K) and affinity (T, E)."""
    affinity = logits.sigmoid()  # eq. 15
    experts = _choose(affinity.detach() + bias, rule)  # eq. 16
    weights = affinity.gather(-1, experts)  # the bias steers the choice, never the mixture
    if rule.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)  # eq. 13
    return experts, weights * rule.routed_scaling_factor, affinity


def _choose(scores: Tensor, rule: Rule) -> Tensor:
    """The K best experts (T, K) within the topk_group best groups of scores (T, E), best first."""
    if rule.topk_group < rule.n_group:
        groups = scores.unflatten(-1, (rule.n_group, -1))  # (T, G, E/G)
        best = groups.topk(2).values.sum(-1).topk(rule.topk_group).indices  # (T, topk_group)
        keep = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, True)
        # Minus infinity, not zero: a biased score may itself be negative.
        scores = groups.masked_fill(~keep.unsqueeze(-1), -torch.inf).flatten(-2)
    return scores.topk(rule.num_experts_per_tok).indices


def route(logits: Tensor, bias: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """`reference` in one pass over each token; the bias gets no gradient."""
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (logits, bias))
    if not fits or not logits.numel() or native("route") is None:
        return reference(logits, bias, rule)
    experts, weights, affinity = _Route.apply(logits, bias, rule)
    return experts, weights, affinity


class _Route(torch.autograd.Function):
    """The native twin."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, bias: Tensor, rule: Rule
    ) -> tuple[Tensor, Tensor, Tensor]:
        run = native("route")
        assert run is not None
        (T, E), K = logits.shape, rule.num_experts_per_tok
        assert K <= E
        assert E % rule.n_group == 0
        experts = torch.empty(T, K, dtype=torch.int64)
        weights, affinity = logits.new_empty(T, K), logits.new_empty(T, E)
        run(
            *(logits.contiguous(), bias.contiguous(), T, E, rule.n_group, rule.topk_group, K),
            *(int(rule.norm_topk_prob), float(rule.routed_scaling_factor)),
            *(experts, weights, affinity, torch.get_num_threads()),
        )
        ctx.rule = rule
        ctx.save_for_backward(affinity, experts)
        ctx.mark_non_differentiable(experts)
        ctx.set_materialize_grads(False)
        return experts, weights, affinity

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _: None, grad_weights: Tensor | None, grad_affinity: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if grad_weights is None and grad_affinity is None:
            return None, None, None
        run = native("route_backward")
        assert run is not None
        affinity, experts = ctx.saved_tensors
        rule: Rule = ctx.rule
        grad = torch.empty_like(affinity)
        grads = (g if g is None else g.contiguous() for g in (grad_weights, grad_affinity))
        run(
            *(affinity, experts, *grads, *affinity.shape, experts.shape[1]),
            *(int(rule.norm_topk_prob), float(rule.routed_scaling_factor)),
            *(grad, torch.get_num_threads()),
        )
        return grad, None, None
