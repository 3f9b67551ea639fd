"""What a figure cannot beat: bytes that must be read and operations that must be made.

    a step of b answers   reads every weight it meets once, and b contexts of latents
    experts met           E (1 - (1 - K/E)^b) of E, as routing is even
    a prompt              2 operations a weight and token, the head for its last token alone
    a training step       6 operations a weight and token, and three times the attention core

The time that is possible is the larger of bytes / bandwidth and operations / rate, both measured
beside the figure.

    b answers of a batch    E n_routed_experts    K num_experts_per_tok
"""

from typing import NamedTuple

from abyssal.config import ModelConfig
from abyssal.plan.count import count

BYTES = {  # of one weight, scales included
    "fp32": 4.0,
    "bf16": 2.0,
    "fp8": 1.0 + 4 / 128**2,
    "int8": 1.0,
    "q8_0": 34 / 32,
    "int4": 0.5 + 2 / 64,
    "q4_0": 18 / 32,
}
PRODUCTS = {"fp32": "fp32", "bf16": "bf16", "fp8": "bf16"}  # others multiply in int8
IN_CACHE_BYTES = 128 << 20  # weights below this are read from L3, above from memory


class Cost(NamedTuple):
    """Of one measured unit of work."""

    num_bytes: float
    operations: float
    held_in: str  # "l3" or "dram": where the bytes come from
    product: str  # the kind of product that makes the operations

    def seconds(self, rates: dict[str, float]) -> float:
        """The least time it takes on a machine with these rates (a second)."""
        reading, computing = self._parts(rates)
        return max(reading, computing)

    def bound(self, rates: dict[str, float]) -> str:
        """Which of the rates that is."""
        reading, computing = self._parts(rates)
        return self.held_in if reading >= computing else self.product

    def _parts(self, rates: dict[str, float]) -> tuple[float, float]:
        return self.num_bytes / rates[self.held_in], self.operations / rates[self.product]


def decode(config: ModelConfig, kind: str, batch: int, context: int) -> Cost:
    """One step of `batch` answers, each behind `context` tokens."""
    counts = count(config)
    E, K = config.n_routed_experts, config.num_experts_per_tok
    share = 1 - (1 - K / E) ** batch
    weights = _weight_bytes(config, kind, share)
    latents = batch * context * counts.cache_bytes_per_token
    core = 2 * config.num_attention_heads * (config.latent_size + config.kv_lora_rank)
    operations = 2 * batch * counts.params_active
    operations += batch * context * config.num_hidden_layers * core
    return _cost(config, weights + latents, operations, kind)


def prefill(config: ModelConfig, kind: str, tokens: int) -> Cost:
    """One prompt read up to the scores of the token behind it."""
    counts = count(config)
    inner = counts.params_active - counts.active.head
    core = config.num_hidden_layers * counts.core_flops_per_position * tokens * tokens // 2
    operations = 2 * inner * tokens + 2 * counts.active.head + core
    return _cost(config, _weight_bytes(config, kind), operations, kind)


def training(config: ModelConfig, rows: int, length: int) -> Cost:
    """Forward, backward and AdamW of `rows` sequences; products in BF16."""
    counts = count(config)
    operations = rows * length * counts.flops_per_token_training(length)
    # Per weight: read forward, backward and by the optimizer, with master, moments and gradient.
    num_bytes = counts.params_total * (2 + 2 + 2 * (4 + 4 + 4) + 4)
    return Cost(num_bytes, operations, "dram", "bf16")


def serving(config: ModelConfig, kind: str, lengths: list[int], new: int, running: int) -> Cost:
    """All prompts read and `new` tokens written behind each, `running` answers at a time."""
    reads = [prefill(config, kind, length) for length in lengths]
    context = sum(lengths) // len(lengths) + new // 2
    step = decode(config, kind, running, context)
    steps = len(lengths) * new / running
    operations = sum(read.operations for read in reads) + steps * step.operations
    return Cost(steps * step.num_bytes, operations, step.held_in, step.product)


def _weight_bytes(config: ModelConfig, kind: str, share: float = 1.0) -> float:
    """All weights but the embedding, with a share of the routed experts.

    kv_b_proj stays in BF16 in integer kinds, and the head of int4 is in int8.
    """
    total = count(config).total
    weights = total.total - total.embedding - total.routed * (1 - share)
    num_bytes = weights * BYTES[kind]
    if kind in ("int8", "q8_0", "int4", "q4_0"):
        width = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
        kept = config.num_hidden_layers * config.kv_lora_rank * width
        num_bytes += kept * (BYTES["bf16"] - BYTES[kind])
    if kind == "int4":
        num_bytes += total.head * (BYTES["int8"] - BYTES["int4"])
    return num_bytes


def _cost(config: ModelConfig, num_bytes: float, operations: float, kind: str) -> Cost:
    held_in = "l3" if _weight_bytes(config, kind) < IN_CACHE_BYTES else "dram"
    return Cost(num_bytes, operations, held_in, PRODUCTS.get(kind, "int8"))
