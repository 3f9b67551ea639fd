"""What a token leaves in each layer for its backward, in bytes, and the room the work itself takes.

What layers keep differs: the native kernels on a CPU in BF16 keep least; PyTorch's, on a CPU in
float32, copy and keep more; in FP8 it is what the report caches (arXiv 2412.19437, section 3.3.3).

    T tokens of a micro-batch    D hidden_size    H heads    E experts    K per token
"""

from dataclasses import replace
from typing import Literal

from abyssal.config import ModelConfig
from abyssal.plan.hardware import Cpu
from abyssal.plan.layout import Layout, Stage

Engine = Literal["native", "torch", "gpu"]
LOGITS_BYTES = 1 << 25  # train/loss.py forms so many at a time on a CPU ...
LOGITS_BYTES_GPU = 1 << 28  # ... and on a GPU
_KEPT_ROWS = (
    512  # kernels/causal_attention.py: sequences this long keep their probabilities (torch)
)
_BLOCK_ROWS = 128
_ROUND = 32  # sorted_experts.py: rows of an expert are rounded up to (torch)
_TILE = 1 + 4 / 128  # bytes of a number in FP8 with its share of a scale
_E5M6 = 1.5 + 4 / 128


def engine_of(precision: str, cpu: Cpu | None) -> Engine:
    """Which kernels do the work."""
    if cpu is None:
        return "gpu"
    return "torch" if precision == "float32" else "native"


def stage_kept(config: ModelConfig, layout: Layout, stage: Stage, engine: Engine) -> float:
    """Of one token, by the blocks, the norms and the MTP modules of a stage."""
    dense = block_kept(config, layout, engine, moe=False)
    moe = block_kept(config, layout, engine, moe=True)
    kept = stage.dense_blocks * dense + stage.moe_blocks * moe
    if stage.last:
        width, D = width_of(layout), config.hidden_size
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
    cfg, width = config, width_of(layout)
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
    Q, width, low = cfg.q_lora_rank or 0, width_of(layout), _linear_width(layout)
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
    width, low = width_of(layout), _linear_width(layout)
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


def block_work(config: ModelConfig, layout: Layout, stage: Stage, engine: Engine) -> float:
    """Bytes a token needs while the largest layer is computed backward."""
    cfg, width = config, width_of(layout)
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


def head_bytes(config: ModelConfig, layout: Layout, engine: Engine) -> int:
    """Gradients of hidden states and head of every pass through it, and room for one chunk."""
    passes, width = 1 + config.num_nextn_predict_layers, width_of(layout)
    W, D = config.vocab_size, config.hidden_size
    most = LOGITS_BYTES_GPU if engine == "gpu" else LOGITS_BYTES
    rows = min(layout.micro_tokens, max(32, most // (W * width)))
    room = rows * W * width
    if engine == "gpu":
        room += 2 * rows * W * 4  # float32 logits and probabilities
    if rows < layout.micro_tokens:
        room += W * D * (width + 4)  # a chunk's gradient, and the sum
    return int(passes * (layout.micro_tokens + W) * D * width + room)


def width_of(layout: Layout) -> int:
    """Bytes of a number between layers."""
    return 4 if layout.precision == "float32" else 2


def _linear_width(layout: Layout) -> float:
    """... and of one that a linear layer keeps."""
    return _TILE if layout.precision == "fp8" else width_of(layout)
