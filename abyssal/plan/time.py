"""How long a step takes: products by kind, bytes through memory, bytes between devices, bubbles.

    chunk       what a pipeline stage computes and sends for one micro-batch (pipeline.py)
    pipeline    all chunks of a step, simulated; DualPipe runs a forward and a backward together
                and hides what they send behind what they compute
    step        the pipeline, then gradients added up over data-parallel ranks, then the optimizer

DeepSeek-V3 (arXiv 2412.19437), sections 3.1 and 3.2. What stated peaks leave open is assumed here
and nowhere else: the shares below. The machine the command runs on is measured (measured.py).
"""

from dataclasses import dataclass
from typing import NamedTuple

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan import pipeline
from abyssal.plan.count import count
from abyssal.plan.hardware import Accelerator
from abyssal.plan.layout import Layout, Stage, stages
from abyssal.plan.measured import Passing, passing, up_flops, update, update_bytes
from abyssal.plan.memory import parameters
from abyssal.plan.schedules import least_micro_batches

EFFICIENCY = 0.7  # of the peak, sustained by large products (assumed; `--efficiency`)
CORE_SHARE = 0.7  # of that, by causal attention with its softmax (assumed)
BANDWIDTH_SHARE = 0.8  # of the memory's, by elementwise work (assumed)
SENDING = 20 / 132  # of a GPU's cores drive communication, section 3.2.2
_FP8_BYTES, _BF16_BYTES = 1 + 4 / 128, 2  # of a number sent


class _Work(NamedTuple):
    """One token's share of a stage, forward."""

    product_flops: float = 0.0
    core_flops: float = 0.0
    head_flops: float = 0.0
    row_bytes: float = 0.0  # elementwise
    sent_s: float = 0.0  # dispatch and combine
    blocks: int = 0


class _Rates(NamedTuple):
    """FLOP and bytes a second that real kernels sustain."""

    product_flops: float
    core_flops: float
    head_flops: float
    row_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one step, as seen by the device that computes longest."""

    compute_s: float
    sending_s: float  # dispatch and combine that nothing hides
    waiting_s: float  # pipeline bubbles, and stages that are shorter than others
    gradients_s: float  # added up over data-parallel ranks
    optimizer_s: float
    step_tokens: int
    devices: int
    mfu: float  # of the BF16 peak, or the fastest there is
    bubble: float  # the idle share of the pipeline

    @property
    def total_s(self) -> float:
        """One step."""
        parts = (self.compute_s, self.sending_s, self.waiting_s, self.gradients_s)
        return sum(parts) + self.optimizer_s

    @property
    def tokens_per_s(self) -> float:
        """Over all devices."""
        return self.step_tokens / self.total_s

    @property
    def device_hours_per_trillion(self) -> float:
        """Device hours for 10^12 tokens."""
        return 1e12 / self.tokens_per_s * self.devices / 3600


def _rates_of(hardware: Accelerator, precision: str, efficiency: float) -> _Rates:
    """Shares of the stated peaks."""
    peak = hardware.peak(precision)
    high = hardware.peak("float32" if precision == "float32" else "bfloat16")
    return _Rates(
        product_flops=peak * efficiency,
        core_flops=high * efficiency * CORE_SHARE,
        head_flops=high * efficiency,
        row_bytes=hardware.bandwidth * BANDWIDTH_SHARE,
    )


def plan_time(
    config: ModelConfig, layout: Layout, hardware: Accelerator, efficiency: float = EFFICIENCY
) -> StepTime:
    """One step of a layout on that hardware.

    Raises:
        ConfigError: the layout does not fit the model, or a link that it needs is not known.
    """
    layout.check(config)
    times, computed = chunk_times(config, layout, hardware, efficiency)
    span, bubble = _pipeline(layout, times)
    m = layout.micro_batches
    chunks = [[computed[stage] for stage in layout.stages_of(rank)] for rank in range(layout.ranks)]
    # DualPipe's stages share the micro-batches of a rank; DualPipeV's all pass both.
    share = 0.5 if layout.schedule == "dualpipe" else 1.0
    slowest = max(chunks, key=lambda one: sum(compute for compute, _ in one))
    compute_s = m * share * sum(compute for compute, _ in slowest)
    hidden = layout.schedule.startswith("dualpipe") and layout.pp > 1
    sending_s = 0.0 if hidden else m * share * sum(sent for _, sent in slowest)
    gradients_s, optimizer_s = _update(config, layout, hardware)
    total = span + gradients_s + optimizer_s
    peak = hardware.peak("float32" if layout.precision == "float32" else "bfloat16")
    flops = count(config).flops_per_token_training(layout.seq_len, mtp=True) * layout.step_tokens
    return StepTime(
        compute_s=compute_s,
        sending_s=sending_s,
        waiting_s=span - compute_s - sending_s,
        gradients_s=gradients_s,
        optimizer_s=optimizer_s,
        step_tokens=layout.step_tokens,
        devices=layout.devices,
        mfu=flops / (total * layout.devices * peak),
        bubble=bubble,
    )


def chunk_times(
    config: ModelConfig, layout: Layout, hardware: Accelerator, efficiency: float = EFFICIENCY
) -> tuple[list[pipeline.Times], list[tuple[float, float]]]:
    """Of each stage: a micro-batch's times, and how much of them is computing and sending.

    Raises:
        ConfigError: the hardware was not measured in that precision, or a link is not known.
    """
    times, parts = [], []
    for stage in stages(config, layout):
        if hardware.measured is not None:
            one, share = passing(config, layout, stage, hardware.of(layout.precision)), 0.0
        else:
            one, share = _stated(config, layout, stage, hardware, efficiency), SENDING
        forward, backward, sent = one.forward, one.backward, one.sent
        # Run together, the cores that send do not compute.
        computing = (forward + backward) / (1 - (share if sent else 0))
        times.append(
            pipeline.Times(forward + sent, backward + sent, one.weights, max(computing, 2 * sent))
        )
        parts.append((forward + backward, 2 * sent))
    return times, parts


def _stated(
    config: ModelConfig, layout: Layout, stage: Stage, hardware: Accelerator, efficiency: float
) -> Passing:
    """A micro-batch through a stage at shares of what data sheets state."""
    work = _work(config, layout, stage, hardware)
    rates, T = _rates_of(hardware, layout.precision, efficiency), layout.micro_tokens
    forward = _seconds(work, rates) * T
    weights = (work.product_flops / rates.product_flops + work.head_flops / rates.head_flops) * T
    backward = 2 * forward + _again(config, layout, work, rates) * T
    return Passing(forward, backward, weights, work.sent_s * T)


def _work(config: ModelConfig, layout: Layout, stage: Stage, hardware: Accelerator) -> _Work:
    """What a stage does for one token, forward."""
    cfg, active, D = config, count(config).active, config.hidden_size
    L, dense = cfg.num_hidden_layers, cfg.first_k_dense_replace
    heads = 1 + cfg.num_nextn_predict_layers if stage.last else 0
    mtp = cfg.num_nextn_predict_layers if stage.last else 0
    blocks, moe = stage.dense_blocks + stage.moe_blocks + mtp, stage.moe_blocks + mtp
    per_moe = cfg.moe_intermediate_size * D * 3
    matrices = blocks * (active.attention / L) + mtp * 2 * D * D
    matrices += moe * (cfg.n_shared_experts * per_moe + D * cfg.n_routed_experts)
    if stage.dense_blocks:
        matrices += stage.dense_blocks * active.dense / dense
    core = 2 * cfg.num_attention_heads * (cfg.qk_head_dim + cfg.v_head_dim) * layout.seq_len / 2
    return _Work(
        product_flops=2 * (matrices + moe * cfg.num_experts_per_tok * per_moe),
        core_flops=blocks * core,
        head_flops=2 * heads * cfg.vocab_size * D,
        row_bytes=blocks * _row_bytes(cfg, layout) + moe * _moe_row_bytes(cfg, layout),
        sent_s=moe * _sent_s(cfg, layout, hardware),
        blocks=blocks,
    )


def _row_bytes(cfg: ModelConfig, layout: Layout) -> float:
    """Read and written outside products: two norms, two sums, the latents, the dense SwiGLU."""
    width = 4 if layout.precision == "float32" else 2
    latent = (cfg.q_lora_rank or 0) + cfg.kv_lora_rank
    quantized = 6 * cfg.hidden_size if layout.precision == "fp8" else 0  # inputs cast to tiles
    return (12 * cfg.hidden_size + 2 * latent) * width + quantized


def _moe_row_bytes(cfg: ModelConfig, layout: Layout) -> float:
    """The router's float32 input, and the middle of the shared expert and the routed ones."""
    width = 4 if layout.precision == "float32" else 2
    inner = (cfg.n_shared_experts + cfg.num_experts_per_tok) * cfg.moe_intermediate_size
    return 6 * cfg.hidden_size + 3 * inner * width


def _sent_s(cfg: ModelConfig, layout: Layout, hardware: Accelerator) -> float:
    """Seconds that a token's dispatch and combine take in one MoE block, one way.

    A token goes to each of its nodes once, over the slower link, and to its experts over the other;
    the two run at the same time.
    """
    if layout.ep == 1:
        return 0.0
    nodes = max(1, layout.ep // hardware.devices_per_node)
    sent = _FP8_BYTES if layout.precision == "fp8" else _BF16_BYTES
    numbers = cfg.hidden_size * (sent + _BF16_BYTES)  # combined in BF16
    reached = min(nodes, cfg.num_experts_per_tok, cfg.topk_group if cfg.n_group > 1 else nodes)
    within = _link(hardware, "intra_node")
    slow = 0.0
    if nodes > 1:
        slow = reached * (nodes - 1) / nodes * numbers / _link(hardware, "inter_node")
    return max(slow, cfg.num_experts_per_tok * numbers / within)


def _link(hardware: Accelerator, name: str) -> float:
    speed = {"intra_node": hardware.intra_node, "inter_node": hardware.inter_node}[name]
    if speed is None:
        raise ConfigError(
            f"nobody states how fast {hardware.name} sends {name.replace('_', ' ')}; give "
            f"--{name.replace('_', '-')} in bytes a second, or a layout that needs no such link"
        )
    return speed


def _seconds(work: _Work, rates: _Rates) -> float:
    """Of a token's forward pass, without what is sent."""
    return (
        work.product_flops / rates.product_flops
        + work.core_flops / rates.core_flops
        + work.head_flops / rates.head_flops
        + work.row_bytes / rates.row_bytes
    )


def _again(config: ModelConfig, layout: Layout, work: _Work, rates: _Rates) -> float:
    """Seconds that a token's recomputation takes."""
    if layout.recompute == "none":
        return 0.0
    if layout.recompute == "blocks":
        return _seconds(work._replace(head_flops=0.0), rates)
    norms = 4 * config.hidden_size * 2 / rates.row_bytes
    return work.blocks * (up_flops(config) / rates.product_flops + norms)


def _pipeline(layout: Layout, times: list[pipeline.Times]) -> tuple[float, float]:
    """Seconds from the first chunk to the last, and the idle share.

    Long steps are extended from shorter ones: each further micro-batch takes as long.
    """
    m = layout.micro_batches
    if layout.pp == 1:
        return m * (times[0].forward + times[0].backward), 0.0
    most = max(least_micro_batches(layout.schedule, layout.pp), 3 * layout.pp)
    if m <= most + 4:
        timeline = pipeline.simulate(layout.schedule, layout.pp, m, times)
        return timeline.span, timeline.bubble
    few = most + (m - most) % 2
    short, longer = (
        pipeline.simulate(layout.schedule, layout.pp, n, times) for n in (few, few + 2)
    )
    span = longer.span + (longer.span - short.span) * (m - few - 2) / 2
    idle = sum(longer.idle) + (sum(longer.idle) - sum(short.idle)) * (m - few - 2) / 2
    return span, idle / (span * layout.ranks)


def _update(config: ModelConfig, layout: Layout, hardware: Accelerator) -> tuple[float, float]:
    """Seconds to add up gradients over ranks, and of the optimizer's pass."""
    params = parameters(config, layout)
    if hardware.measured is not None:
        return update(params.total, layout, hardware.of(layout.precision))
    width = 4 if layout.precision == "float32" else 2
    passed = update_bytes(params.total, layout)
    optimizer_s = passed / (hardware.bandwidth * BANDWIDTH_SHARE)
    if layout.dp == 1:
        return 0.0, optimizer_s
    # Reduce-scatter and all-gather around a ring, experts over the ranks that repeat them.
    copies = layout.dp // layout.ep
    one_node = layout.devices <= hardware.devices_per_node
    speed = _link(hardware, "intra_node" if one_node else "inter_node")
    shared = params.shared * (layout.dp - 1) / layout.dp
    experts = params.experts * (copies - 1) / copies
    return (4 + (width if layout.zero else 4)) * (shared + experts) / speed, optimizer_s
