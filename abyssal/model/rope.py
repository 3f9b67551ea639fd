"""Rotary frequencies, plain, interpolated and with YaRN, and the softmax scale that goes with them.

DeepSeek-V3 (arXiv 2412.19437), section 4.3; YaRN (arXiv 2309.00071). Pairs that turn often within
the original context keep their frequency, pairs that turn less than once are slowed by ``factor``,
and a ramp joins both. The temperature sqrt(t) = 0.1 ln(factor) + 1 acts on the whole attention
logit, squared, and not on cos and sin: doing both would count it twice. Position interpolation
(arXiv 2306.15595) slows every pair, and there is no temperature.

    T tokens    R qk_rope_head_dim
"""

import math

import torch
from torch import Tensor

from abyssal.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each rotary pair (R/2,) float32."""
    R = config.qk_rope_head_dim
    plain = config.rope_theta ** -(torch.arange(0, R, 2, dtype=torch.float32) / R)  # (R/2,)
    yarn = config.rope_scaling
    if yarn is None:
        return plain
    if yarn.type == "linear":
        return plain / yarn.factor
    low: float = max(math.floor(_pair_turning(yarn.beta_fast, config, yarn)), 0)
    high: float = min(math.ceil(_pair_turning(yarn.beta_slow, config, yarn)), R - 1)
    if low == high:
        high += 0.001  # a ramp needs a width
    ramp = ((torch.arange(R // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def cos_sin(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine of every angle at positions (T,): two of (T, R/2) float32."""
    angles = positions.float().unsqueeze(-1) * inverse_frequencies(config).to(positions.device)
    yarn = config.rope_scaling
    if yarn is None or yarn.type == "linear":
        return angles.cos(), angles.sin()
    amplitude = _temperature(yarn.factor, 1.0)
    if yarn.mscale and yarn.mscale_all_dim:  # 1 in the released model, whose two mscales are equal
        amplitude = _temperature(yarn.factor, yarn.mscale)
        amplitude /= _temperature(yarn.factor, yarn.mscale_all_dim)
    return angles.cos() * amplitude, angles.sin() * amplitude


def softmax_scale(config: ModelConfig) -> float:
    """What attention logits are multiplied by: 1/sqrt(qk_head_dim), times mscale squared under
    YaRN.

    The released model: 192 ** -0.5 * 1.3688879 ** 2 = 0.1352338.
    """
    scale: float = config.qk_head_dim**-0.5
    yarn = config.rope_scaling
    if yarn is not None and yarn.type == "yarn" and yarn.mscale_all_dim:
        scale *= _temperature(yarn.factor, yarn.mscale_all_dim) ** 2
    return scale


def _pair_turning(rotations: float, config: ModelConfig, yarn: RopeScaling) -> float:
    """The (fractional) pair that turns `rotations` times within the original context."""
    turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
    return config.qk_rope_head_dim * math.log(turns) / (2 * math.log(config.rope_theta))


def _temperature(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
