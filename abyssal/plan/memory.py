"""Bytes on each device while training: what stands for the whole run, and what a step adds.

    weights, masters, moments      stand; ZeRO-1 spreads masters and moments
    gradients                      of one micro-batch in its precision, of several a float32 sum
    activations                    what our own layers keep for the backward, for every micro-batch
                                   on its way (pipeline.py), and room for the work itself
    head                           the head's own gradient and a chunk of logits (train/loss.py)

What layers keep differs: the native kernels on a CPU in BF16 keep least; PyTorch's, on a CPU in
float32, copy and keep more; in FP8 it is what the report caches (arXiv 2412.19437, section 3.3.3).
A device's largest moment is the beginning of the last backward or its end, whichever is more.

    T tokens of a micro-batch    D hidden_size    H heads    E experts    K per token
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Literal, NamedTuple

from abyssal.config import ModelConfig
from abyssal.plan import pipeline
from abyssal.plan.count import count
from abyssal.plan.layout import Layout, Stage, stages

Engine = Literal["native", "torch", "gpu"]
# glibc's heap over what is alive in it beside weights and their state: what is freed leaves holes
# that the next tensor may not fit, recomputation makes more of them, native kernels keep scratch.
# Found with `small` and a model of 57M parameters, 1K to 8K tokens a pass; runs differ by 6%.
HEAP = {"native": 1.38, "torch": 1.15}
HEAP_RECOMPUTED = 1.8
LOGITS_BYTES = 1 << 25  # train/loss.py forms so many at a time on a CPU ...
LOGITS_BYTES_GPU = 1 << 28  # ... and on a GPU
_KEPT_ROWS = 512  # kernels/attention.py: sequences this long keep their probabilities (torch)
_BLOCK_ROWS = 128
_ROUND = 32  # kernels/experts.py: rows of an expert are rounded up to (torch)
_TILE = 1 + 4 / 128  # bytes of a number in FP8 with its share of a scale
_E5M6 = 1.5 + 4 / 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one device."""

    weights: int = 0
    masters: int = 0
    moments: int = 0
    gradients: int = 0
    activations: int = 0
    work: int = 0  # room of the layer at work
    head: int = 0
    slack: int = 0  # what the allocator holds beyond that

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def to_dict(self) -> dict[str, int]:
        """By part, and together."""
        return {**asdict(self), "total": self.total}


class Parameters(NamedTuple):
    """Of one device: what every data-parallel rank repeats, and its share of routed experts."""

    shared: int
    experts: int

    @property
    def total(self) -> int:
        """Both."""
        return self.shared + self.experts


def engine_of(precision: str, *, is_cpu: bool) -> Engine:
    """Which kernels do the work."""
    if not is_cpu:
        return "gpu"
    return "torch" if precision == "float32" else "native"


def of_stage(config: ModelConfig, stage: Stage) -> Parameters:
    """The parameters of a stage, its experts whole."""
    counts, D = count(config), config.hidden_size
    blocks, moe = stage.dense_blocks + stage.moe_blocks, stage.moe_blocks
    all_moe = config.num_hidden_layers - config.first_k_dense_replace
    total, shared = counts.total, 0
    shared += blocks * (total.attention // config.num_hidden_layers + 2 * D)
    if stage.dense_blocks:
        shared += stage.dense_blocks * (total.dense // config.first_k_dense_replace)
    if moe:
        shared += moe * ((total.shared + total.router) // all_moe)
    experts = moe * (total.routed // all_moe) if moe else 0
    if stage.first:
        shared += total.embedding
    if stage.last:
        shared += total.head + D + counts.mtp.total - counts.mtp.routed
        experts += counts.mtp.routed
    return Parameters(shared, experts)


def parameters(config: ModelConfig, layout: Layout, rank: int = 0) -> Parameters:
    """What a device of pipeline rank `rank` holds; DualPipe's hold two stages.

    MTP modules read the embedding again: the last stage has a copy where it lies elsewhere.
    """
    parts = stages(config, layout)
    held = [of_stage(config, parts[stage]) for stage in layout.stages_of(rank)]
    shared = sum(part.shared for part in held)
    if layout.pp > 1 and layout.pp - 1 in layout.stages_of(rank) and (
        config.num_nextn_predict_layers and 0 not in layout.stages_of(rank)
    ):  # fmt: skip
        shared += count(config).total.embedding
    return Parameters(shared, sum(part.experts for part in held) // layout.ep)


def plan_memory(config: ModelConfig, layout: Layout, *, is_cpu: bool = False) -> list[Memory]:
    """Of a device of every pipeline rank, at its largest moment."""
    layout.check(config)
    chunks = _chunks_kept(layout)
    return [_of_rank(config, layout, rank, chunks, is_cpu) for rank in range(layout.ranks)]


def largest(config: ModelConfig, layout: Layout, *, is_cpu: bool = False) -> Memory:
    """Of the device that needs most."""
    return max(plan_memory(config, layout, is_cpu=is_cpu), key=lambda memory: memory.total)


def _chunks_kept(layout: Layout) -> tuple[int, ...]:
    """Micro-batches whose activations a rank keeps at once, counted chunk by chunk.

    No more than fill the pipeline: a longer step keeps as many.
    """
    if layout.pp == 1:
        return (1,)
    enough = max(pipeline.least_micro_batches(layout.schedule, layout.pp), 2 * layout.pp)
    return _peak_chunks(layout.schedule, layout.pp, min(layout.micro_batches, enough))


@cache
def _peak_chunks(schedule: pipeline.Schedule, pp: int, micro_batches: int) -> tuple[int, ...]:
    return pipeline.simulate(schedule, pp, micro_batches, pipeline.Times()).peak_chunks


def _of_rank(
    config: ModelConfig, layout: Layout, rank: int, chunks: tuple[int, ...], is_cpu: bool
) -> Memory:
    engine = engine_of(layout.precision, is_cpu=is_cpu)
    standing = _standing(config, layout, parameters(config, layout, rank))
    parts = stages(config, layout)
    held = [parts[stage] for stage in layout.stages_of(rank)]
    T = layout.micro_tokens
    kept = sum(_stage_kept(config, layout, part, engine) for part in held) / len(held)
    activations = int(chunks[rank] * kept * T)
    head = _head(config, layout, engine) if any(part.last for part in held) else 0
    work = int(T * max(_block_work(config, layout, part, engine) for part in held))
    fresh, sums = _gradients(config, layout, parameters(config, layout, rank))
    # The last backward begins with all activations, and ends with all gradients instead.
    begins = Memory(**standing, gradients=sums, activations=activations, work=work, head=head)
    ends = Memory(**standing, gradients=sums + fresh, work=work)
    peak = max(begins, ends, key=lambda memory: memory.total)
    if not is_cpu:
        return peak
    heap = HEAP_RECOMPUTED if layout.recompute == "blocks" else HEAP[engine]
    alive = peak.gradients + peak.activations + peak.work + peak.head
    grown = {name: value for name, value in asdict(peak).items() if name != "slack"}
    return Memory(**grown, slack=int((heap - 1) * alive))


def _standing(config: ModelConfig, layout: Layout, params: Parameters) -> dict[str, int]:
    """Weights, masters and moments."""
    per_weight = {"bfloat16": 2.0, "float32": 4.0, "fp8": _weight_bytes_fp8(config)}
    width = {"bfloat16": 2, "float32": 4}[layout.moments]
    of_shared = layout.dp if layout.zero else 1
    of_experts = layout.dp // layout.ep if layout.zero else 1
    owned = params.shared / of_shared + params.experts / of_experts
    master = 0 if layout.precision == "float32" else 4  # float32 is its own master
    return {
        "weights": int(per_weight[layout.precision] * params.total),
        "masters": int(master * owned),
        "moments": int(2 * width * owned),
    }


def _weight_bytes_fp8(config: ModelConfig) -> float:
    """Bytes of a weight, on average: embedding, head, router, norms and eh_proj stay in BF16."""
    counts = count(config)
    total = counts.params_total + counts.params_mtp
    high = sum(
        part.embedding + part.head + part.router + part.norms + part.projection
        for part in (counts.total, counts.mtp)
    )
    return (2 * high + (1 + 4 / 128**2) * (total - high)) / total


def _gradients(config: ModelConfig, layout: Layout, params: Parameters) -> tuple[int, int]:
    """Bytes of the last micro-batch's own gradients, and of what those before left.

    Our loop hands each micro-batch's over whole; in a pipeline they are added as they come.
    """
    width = 4 if layout.precision == "float32" else 2
    if layout.pp > 1:
        return 0, 4 * params.total
    if layout.micro_batches > 1:  # the first's are waiting, beside room for the sum
        return width * params.total, (width + 4) * params.total
    is_copied = layout.dp > 1 and width < 4  # what travels is a float32 copy, whose room stays
    return width * params.total, 4 * params.total if is_copied else 0


# What a token leaves in a layer, in bytes


def _stage_kept(config: ModelConfig, layout: Layout, stage: Stage, engine: Engine) -> float:
    """Of one token, by the blocks, the norms and the MTP modules of a stage."""
    dense = block_kept(config, layout, engine, moe=False)
    moe = block_kept(config, layout, engine, moe=True)
    kept = stage.dense_blocks * dense + stage.moe_blocks * moe
    if stage.last:
        width, D = _width(layout), config.hidden_size
        # Ahead of the head a norm and what it made; MTP: two norms, both halves joined, and a norm.
        kept += 2 * D * width
        always = layout if layout.recompute != "blocks" else _keeping(layout)
        whole = block_kept(config, always, engine, moe=True)
        kept += config.num_nextn_predict_layers * (whole + 6 * D * width)
    return kept


def _keeping(layout: Layout) -> Layout:
    """MTP modules are not recomputed by our trainer."""
    return replace(layout, recompute="none")


def block_kept(config: ModelConfig, layout: Layout, engine: Engine, *, moe: bool) -> float:
    """Bytes that one token leaves in one block for its backward."""
    cfg, width = config, _width(layout)
    if layout.recompute == "blocks":
        routed = 4 * cfg.n_routed_experts + 12 * cfg.num_experts_per_tok
        balance = 12 * cfg.n_routed_experts
        return cfg.hidden_size * width + (routed + balance if moe else 0)
    attention = _attention_kept(cfg, layout, engine)
    return attention + (_moe_kept if moe else _dense_kept)(cfg, layout, engine)


def _attention_kept(cfg: ModelConfig, layout: Layout, engine: Engine) -> float:
    """With the norms before and behind it."""
    D, H, C, R = (cfg.hidden_size, cfg.num_attention_heads, cfg.kv_lora_rank,
                  cfg.qk_rope_head_dim)  # fmt: skip
    query, pair, value = H * cfg.qk_head_dim, H * (cfg.qk_nope_head_dim + cfg.v_head_dim), (
        H * cfg.v_head_dim)  # fmt: skip
    Q, width, low = cfg.q_lora_rank or 0, _width(layout), _linear_width(layout)
    again = layout.recompute == "norms"
    kept = 2.0 * D * width + 4 * H + 16  # two norms' inputs; one number a row and head
    kept += (Q + C + R) * width  # the latents before their norms
    if not again:
        kept += (2 * D + Q + C) * low  # what norms made, which linear layers keep
        if engine == "native":
            kept += (query + pair + R) * width
        else:  # q, k and v head by head
            kept += (2 * query + value) * width
    if engine == "torch" and layout.seq_len <= _KEPT_ROWS:
        kept += H * (layout.seq_len + _BLOCK_ROWS) / 2 * width  # probabilities
    return kept + value * (_E5M6 if layout.precision == "fp8" else width)


def _dense_kept(cfg: ModelConfig, layout: Layout, engine: Engine) -> float:
    return _swiglu_kept(cfg.intermediate_size, layout)


def _swiglu_kept(inner: int, layout: Layout) -> float:
    """Gate and up, and their product, which the report computes again in FP8."""
    low = _linear_width(layout)
    return inner * (2 * low if layout.precision == "fp8" else 3 * low)


def _moe_kept(cfg: ModelConfig, layout: Layout, engine: Engine) -> float:
    D, E, K, F = (cfg.hidden_size, cfg.n_routed_experts, cfg.num_experts_per_tok,
                  cfg.moe_intermediate_size)  # fmt: skip
    width, low = _width(layout), _linear_width(layout)
    kept = 16.0 * E + 12 * K  # affinities, and of the balance term; choices and their weights
    kept += _swiglu_kept(cfg.n_shared_experts * F, layout)
    if layout.precision != "float32":
        kept += 4 * D  # the router's input in float32
    if engine == "native":
        return kept + 16 * K + 2 * K * F * width
    rows = float(K) + (_ROUND * E / (2 * layout.micro_tokens) if engine == "torch" else 0)
    middle = 0.0 if layout.precision == "fp8" else F * width  # computed again in FP8
    kept += rows * (D * low + 2 * F * low + middle) + 16 * K
    if layout.precision == "fp8":  # weighted before the product down, whose input is at hand
        return kept
    return kept + K * D * width  # what came back, for the gradient of the weights


def _block_work(config: ModelConfig, layout: Layout, stage: Stage, engine: Engine) -> float:
    """Bytes a token needs while the largest layer is computed backward."""
    cfg, width = config, _width(layout)
    D, K, F = cfg.hidden_size, cfg.num_experts_per_tok, cfg.moe_intermediate_size
    attention = cfg.num_attention_heads * (cfg.qk_head_dim + cfg.qk_nope_head_dim
                                           + 2 * cfg.v_head_dim) * width  # fmt: skip
    dense = 3.0 * cfg.intermediate_size * width if stage.dense_blocks else 0
    routed = 0.0
    if stage.moe_blocks or (stage.last and cfg.num_nextn_predict_layers):
        routed = K * (2 * D + 3 * F) * width
    room = 3.0 * D * width + max(attention, dense, routed)
    if layout.recompute == "blocks":
        keeping = _keeping(layout)
        room += block_kept(cfg, keeping, engine, moe=bool(stage.moe_blocks))
    elif layout.recompute == "norms":
        room += cfg.num_attention_heads * (2 * cfg.qk_head_dim + cfg.v_head_dim) * width
    return room


def _head(config: ModelConfig, layout: Layout, engine: Engine) -> int:
    """Gradients of hidden states and head of every pass through it, and room for one chunk."""
    passes, width = 1 + config.num_nextn_predict_layers, _width(layout)
    W, D = config.vocab_size, config.hidden_size
    most = LOGITS_BYTES_GPU if engine == "gpu" else LOGITS_BYTES
    rows = min(layout.micro_tokens, max(32, most // (W * width)))
    room = rows * W * width
    if engine == "gpu":
        room += 2 * rows * W * 4  # float32 logits and probabilities
    if rows < layout.micro_tokens:
        room += W * D * (width + 4)  # a chunk's gradient, and the sum
    return int(passes * (layout.micro_tokens + W) * D * width + room)


def _width(layout: Layout) -> int:
    """Bytes of a number between layers."""
    return 4 if layout.precision == "float32" else 2


def _linear_width(layout: Layout) -> float:
    """... and of one that a linear layer keeps."""
    return _TILE if layout.precision == "fp8" else _width(layout)
