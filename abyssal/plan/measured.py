"""A machine that was measured instead of looked up: what a training step of ours takes on it.

    pass      whole blocks, timed as a run has them, one micro-batch long
    ends      embedding, head and loss, once more for every MTP module
    update    gradients added up (over micro-batches, over processes), their norm, AdamW

`abyssal.train.rates` measures; nothing in it knows of layouts, and no number here belongs to one.
"""

from dataclasses import dataclass
from typing import NamedTuple

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.layout import Layout, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds, all of one precision; of several processes, of the slowest while all are at work."""

    seq_len: int  # that blocks were measured with
    dense_forward_s: float  # of one token through a dense block
    dense_backward_s: float
    moe_forward_s: float  # ... through an MoE block
    moe_backward_s: float
    ends_s: float  # ... through embedding, head and loss, there and back
    peak_s: float  # a FLOP of one large product, which MFU is a share of
    product_s: float  # ... of products with the model's own matrices
    core_s: float  # a FLOP of causal attention, counted over the half that is computed
    row_s: float  # a byte of elementwise work, each read or written once
    step_s: float  # a byte of the optimizer's pass
    # Between processes, a byte:
    sum_s: float | None = None  # of float32 gradients, made so and added up on all
    gather_s: float | None = None  # ... on their owners
    copy_s: float | None = None  # of what owners copy to all


class Passing(NamedTuple):
    """Seconds of a micro-batch through one stage."""

    forward: float
    backward: float  # recomputation included
    weights: float  # of the backward, what the weights' own gradients take
    sent: float = 0.0  # dispatch and combine, one way


def passing(config: ModelConfig, layout: Layout, stage: Stage, rates: Measured) -> Passing:
    """One stage on that machine."""
    mtp = config.num_nextn_predict_layers if stage.last else 0
    moe, blocks = stage.moe_blocks + mtp, stage.dense_blocks + stage.moe_blocks + mtp
    longer = blocks * _core_flops(config, layout.seq_len - rates.seq_len) * rates.core_s
    forward = stage.dense_blocks * rates.dense_forward_s + moe * rates.moe_forward_s + longer
    backward = stage.dense_blocks * rates.dense_backward_s + moe * rates.moe_backward_s + 2 * longer
    # Our trainer does not recompute MTP modules.
    again = _again(config, layout, blocks, rates, forward - mtp * rates.moe_forward_s)
    joined = mtp * 4.0 * config.hidden_size**2 * rates.product_s  # eh_proj
    ends = (1 + mtp) * rates.ends_s if stage.last else 0.0
    forward += joined + ends / 3
    backward += 2 * (joined + ends / 3)
    T = layout.micro_tokens
    return Passing(T * forward, T * (backward + again), T * backward / 2)


def update(total: int, layout: Layout, rates: Measured) -> tuple[float, float]:
    """Seconds to add up `total` parameters' gradients over processes, and of the optimizer.

    Raises:
        ConfigError: there are several processes, and what they send was not measured.
    """
    optimizer_s = update_bytes(total, layout) * rates.step_s
    if layout.dp == 1:
        return 0.0, optimizer_s
    if rates.sum_s is None or rates.gather_s is None or rates.copy_s is None:
        raise ConfigError(
            f"dp={layout.dp}: what this machine's processes send each other was not measured; "
            "leave --hardware this to measure it, or plan one process"
        )
    if not layout.zero:
        return 4 * total * rates.sum_s, optimizer_s
    width = 4 if layout.precision == "float32" else 2
    return 4 * total * rates.gather_s + width * total * rates.copy_s, optimizer_s


def update_bytes(total: int, layout: Layout) -> float:
    """What adding up over micro-batches and the optimizer's pass read and write on one rank."""
    width = 4 if layout.precision == "float32" else 2
    sums = (layout.micro_batches - 1) * (width + 8) * total
    owned = total / (layout.dp if layout.zero else 1)
    return step_bytes(layout.precision, layout.moments, is_sum=layout.has_sums) * owned + sums


def step_bytes(precision: str, moments: str, *, is_sum: bool) -> int:
    """What the optimizer's pass reads and writes for a parameter.

    The gradient twice, for its norm too, and in float32 where it is a sum; master and moments both
    ways; the working copy, where it is another one.
    """
    width = 4 if precision == "float32" else 2
    moment = {"bfloat16": 2, "float32": 4}[moments]
    return 2 * (4 if is_sum else width) + 8 + 4 * moment + (width if width < 4 else 0)


def _core_flops(config: ModelConfig, seq_len: int) -> float:
    """A token's, forward, in one block."""
    return config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) * float(seq_len)


def _again(
    config: ModelConfig, layout: Layout, blocks: int, rates: Measured, forward: float
) -> float:
    """Seconds that a token's recomputation takes."""
    if layout.recompute == "none":
        return 0.0
    if layout.recompute == "blocks":
        return forward
    width = 4 if layout.precision == "float32" else 2
    norms = 4 * config.hidden_size * width * rates.row_s
    return blocks * (up_flops(config) * rates.product_s + norms)


def up_flops(config: ModelConfig) -> float:
    """A token's, forward, through the up-projections of MLA in one block."""
    cfg = config
    query = (cfg.q_lora_rank or cfg.hidden_size) * cfg.num_attention_heads * cfg.qk_head_dim
    pair = cfg.kv_lora_rank * cfg.num_attention_heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)
    return 2.0 * (query + pair)
