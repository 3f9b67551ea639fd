"""Balance without a loss: after each step, overloaded experts become less attractive, idle ones
more.

    b_i = b_i + gamma * sign(mean load - load_i)

DeepSeek-V3 (arXiv 2412.19437), section 2.1.2; Wang et al. (arXiv 2408.15664), algorithm 1. Loads
are whole counts over every micro-batch of a step. The gate itself keeps no state, so recomputing
activations or evaluating between steps cannot count twice.

    L MoE blocks    E experts
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from abyssal.model.moe import Gate, Routing
from abyssal.parallel.ranks import Ranks


def expert_load(routings: Sequence[Routing]) -> Tensor:
    """Tokens routed to each expert (L, E) int64."""
    loads = [r.experts.flatten().bincount(minlength=r.affinity.shape[-1]) for r in routings]
    return torch.stack(loads)


def whole_load(load: Tensor, ranks: Ranks) -> Tensor:
    """The load (L, E) of a step over all ranks; one that computed nothing has (0, 0)."""
    shape = max(ranks.everyone(list(load.shape)))
    load = load if len(load) else torch.zeros(shape, dtype=load.dtype, device=ranks.device)
    if len(load):
        ranks.sum(load)
    return load


@torch.no_grad()
def update_biases(gates: Sequence[Gate], load: Tensor, gamma: float) -> None:
    """Move every gate's float32 bias by gamma towards balance, given the step's load (L, E)."""
    if not gamma:
        return
    for gate, counts in zip(gates, load, strict=True):
        # Whole numbers on both sides: E * load against the total, so that equality is exact.
        towards = (counts.sum() - counts * len(counts)).sign()
        gate.e_score_correction_bias.add_(towards.to(torch.float32), alpha=gamma)


def max_violation(load: Tensor) -> Tensor:
    """MaxVio of each block (L,): the largest load over the mean load, less one; 0 is perfect."""
    mean = load.double().mean(-1).clamp(min=1e-9)
    return load.max(-1).values.double() / mean - 1
