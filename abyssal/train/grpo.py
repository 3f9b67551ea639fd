"""Group relative policy optimization as functions of tensors: no model, no engine, no loop.

    J = 1/G sum_i ( min(r_i A_i, clip(r_i, 1-eps, 1+eps) A_i) - beta D_KL )       eq. 26
    D_KL = pi_ref/pi - log(pi_ref/pi) - 1                                         eq. 27
    A_i = (reward_i - mean) / std, over the G outputs of one question             eq. 28

DeepSeek-V3 (arXiv 2412.19437), section 5.2.2. As printed there, r and D_KL are of whole outputs
(``level="sequence"``). DeepSeekMath (arXiv 2402.03300), where GRPO is from, has them per token and
averages each output over its own length: that is the default here. The other switches are Dr.
GRPO's mean without std and constant divisor (arXiv 2503.20783), DAPO's two clips and mean over all
tokens (arXiv 2503.14476), and GSPO's ratio with its length-th root taken (arXiv 2507.18071).

Outputs are laid end to end, without padding; what is not to be learned has no weight.

    Q questions    G outputs of each    N outputs in a batch    T tokens of them together
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from abyssal.errors import ConfigError

Level = Literal["token", "sequence", "root"]
Scale = Literal["population", "sample", "none"]
Mean = Literal["output", "token", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is maximized; the published runs leave the ratio's level, std and G's mean open."""

    level: Level = "token"  # of the ratio; "sequence" is eq. 26 as printed, "root" is GSPO's
    scale: Scale = "population"  # what advantages are divided by; "none" is Dr. GRPO
    mean: Mean = "output"  # of what the loss is one; "token" is DAPO's, "constant" Dr. GRPO's
    clip_low: float = 0.2
    clip_high: float = 0.2  # R1 has 10 for both
    kl: float = 0.001  # beta: the weight of the distance to the reference
    truncate: float | None = None  # the most that pi_trainer/pi_engine weighs; none: no correction

    def __post_init__(self) -> None:
        if not (0 < self.clip_low < math.inf and 0 < self.clip_high < math.inf):
            raise ConfigError(
                f"clip_low={self.clip_low} and clip_high={self.clip_high}, expected both above 0"
            )
        if not 0 <= self.kl < math.inf:
            raise ConfigError(f"kl={self.kl}, expected a number of at least 0")
        if self.truncate is not None and not 0 < self.truncate < math.inf:
            raise ConfigError(f"truncate={self.truncate}, expected a number above 0, or none")


class Taken(NamedTuple):
    """What was drawn with which probabilities: columns of the T tokens of N outputs."""

    logprob: Tensor  # (T,) by the policy as it is now, with its gradient
    old: Tensor  # (T,) by the policy that drew, as the trainer computes it
    reference: Tensor | None  # (T,) by the reference; None where kl is 0
    drawn: Tensor | None  # (T,) by that policy as the engine computed it; None without `truncate`
    output: Tensor  # (T,) int64: which of the N outputs a token belongs to


class Terms(NamedTuple):
    """The loss to be minimized, and what to watch."""

    loss: Tensor  # scalar, with gradient: the policy's part + beta times the distance
    policy: Tensor  # ... the first alone
    kl: Tensor  # mean over tokens that weigh something (over outputs at level "sequence")
    clipped: Tensor  # share of those tokens whose gradient the clip has cut off


def has_variance(rewards: Tensor) -> Tensor:
    """Which of the questions of rewards (Q, G) have outputs that differ: (Q,) bool.

    What is not finite differs from all, so that it reaches whoever guards the loss.
    """
    return (rewards.amax(-1) != rewards.amin(-1)) | ~rewards.isfinite().all(-1)


def advantages(rewards: Tensor, scale: Scale) -> Tensor:
    """Rewards (Q, G) relative to their group (Q, G), eq. 28; exactly 0 where all are equal."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    if scale != "none":
        correction = 1 if scale == "sample" else 0
        if scale == "sample" and rewards.shape[-1] < 2:
            raise ConfigError("one output has no sample deviation; draw more, or scale otherwise")
        centred = centred / rewards.std(-1, correction=correction, keepdim=True)
    return torch.where(has_variance(rewards)[:, None], centred, torch.zeros_like(centred))


def token_weights(lengths: Tensor, counted: Tensor, mean: Mean, longest: int) -> Tensor:
    """How much each token of N outputs counts (T,): those of one optimizer step together.

    lengths (N,) and counted (N,) bool, whether an output is learned from. "output": each counts the
    same, and so do its tokens. "token": all tokens count the same. "constant": a token counts
    1/longest of an output, however long the output is.
    """
    kept = counted.to(torch.float64)
    number = kept.sum().clamp(min=1)
    if mean == "output":
        weight = kept / (lengths.clamp(min=1) * number)
    elif mean == "token":
        weight = kept / (kept * lengths).sum().clamp(min=1)
    else:
        weight = kept / (number * longest)
    return weight.repeat_interleave(lengths).float()


def k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """How far the policy is from the reference where it drew (eq. 27): never negative, unbiased."""
    further = reference - logprob
    return further.exp() - further - 1


def loss(taken: Taken, advantage: Tensor, weight: Tensor, objective: Objective) -> Terms:
    """Minus eq. 26, given advantage (N,) of the outputs and weight (T,) of the tokens.

    With ratios of whole outputs, all tokens of one have its ratio. Weights of several parts of a
    step may come from `token_weights` of the whole: the losses of the parts then add up to it.
    """
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    ratio = _of_level(taken.logprob - taken.old, taken.output, objective.level).exp()  # (T,)
    gain = advantage[taken.output]
    clipped = ratio.clamp(low, high)
    policy = -torch.minimum(ratio * gain, clipped * gain)
    if objective.truncate is not None:
        assert taken.drawn is not None
        policy = policy * importance(taken.old, taken.drawn, objective.truncate)
    total = (policy * weight).sum()
    counts = weight > 0
    distance = total.new_zeros(())
    told = distance
    if objective.kl:
        assert taken.reference is not None
        level: Level = "sequence" if objective.level == "sequence" else "token"
        further = _of_level(taken.reference - taken.logprob, taken.output, level)
        each = further.exp() - further - 1
        distance, told = (each * weight).sum(), _mean(each.detach(), counts)
    cut = ((ratio < low) & (gain < 0)) | ((ratio > high) & (gain > 0))
    return Terms(
        total + objective.kl * distance,
        total.detach(),
        told,
        _mean(cut.float(), counts),
    )


def importance(old: Tensor, drawn: Tensor, most: float) -> Tensor:
    """pi_trainer/pi_engine of each token (T,), at most `most`: what drawing elsewhere owes."""
    return (old - drawn).exp().clamp(max=most).detach()


def _of_level(difference: Tensor, output: Tensor, level: Level) -> Tensor:
    """Log-ratios (T,) of tokens, or of the outputs they belong to, in the place of each token."""
    if level == "token":
        return difference
    number = int(output.max()) + 1 if len(output) else 0
    zeros = difference.new_zeros(number)
    sums = zeros.index_add(0, output, difference)  # (N,)
    if level == "root":
        sums = sums / zeros.index_add(0, output, torch.ones_like(difference)).clamp(min=1)
    return sums[output]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
