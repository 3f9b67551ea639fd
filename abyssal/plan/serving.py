"""What serving takes: a user's cache, users on a device, tokens a second, and what binds them.

    memory        weights of the device and the caches of its users, read in every step
    arithmetic    2 FLOPs a parameter and token, and absorbed attention over what is cached
    network       dispatch and combine of every MoE layer, beside the other half of the batch

A unit is `devices` devices that share the experts, attention on each for its own users
(DeepSeek-V3, arXiv 2412.19437, section 3.4; sizes of the online service: DeepSeek's "Inference
System Overview"). The latency bound of "Insights into DeepSeek-V3" (arXiv 2505.09343, section
2.3.2) is `step_bound_s`.
"""

from dataclasses import dataclass

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.count import count
from abyssal.plan.hardware import Accelerator
from abyssal.plan.time import BANDWIDTH_SHARE, EFFICIENCY

DISPATCH_BYTES, COMBINE_BYTES = 1, 2  # FP8 there, BF16 back


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Devices that serve one copy of the model."""

    devices: int
    slots: int  # of routed experts over all devices, replicas among them

    @property
    def slots_per_device(self) -> int:
        """Routed experts of one device."""
        return -(-self.slots // self.devices)


# Of 8 devices a node; 32 replicas beside 256 experts.
UNITS = {
    "prefill": Unit(devices=32, slots=288),
    "decode": Unit(devices=144, slots=288),
    "report-prefill": Unit(devices=32, slots=288),
    "report-decode": Unit(devices=320, slots=320),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """One device of a unit while decoding, and while reading prompts."""

    devices: int
    context: int  # tokens cached for each user, on average
    weight_bytes: int
    cache_bytes_per_token: int
    cache_bytes_per_user: int
    users_per_device: int  # that fit beside the weights
    batch: int  # users of a device in one step
    memory_s: float
    arithmetic_s: float
    network_s: float
    decode_tokens_per_s: float  # of one device
    tokens_per_s_per_user: float
    prefill_tokens_per_s: float  # of one device
    bound: str  # what a decoding step waits for

    @property
    def step_s(self) -> float:
        """A decoding step of all users: the network is hidden by the rest, or hides it."""
        return max(self.memory_s, self.arithmetic_s, self.network_s)


def unit_for(config: ModelConfig, devices: int) -> Unit:
    """So many devices, every expert once, and replicas up to the same number on each device."""
    if devices < 1:
        raise ConfigError(f"devices={devices}, expected at least 1")
    per_device = -(-config.n_routed_experts // devices)
    return Unit(devices=devices, slots=per_device * devices)


def plan_serving(
    config: ModelConfig,
    hardware: Accelerator,
    unit: Unit,
    *,
    context: int = 4096,
    batch: int | None = None,
    precision: str = "fp8",
    cache_bytes: int = 2,
    efficiency: float = EFFICIENCY,
    reserve: float = 0.1,
) -> Serving:
    """One device of a unit; `batch` users at once, or as many as fit but no more than 256.

    Raises:
        ConfigError: the weights do not fit, or fewer users than asked for do.
    """
    weights = device_weights(config, unit, precision)
    usable = hardware.memory_bytes * (1 - reserve)
    if weights > usable:
        raise ConfigError(
            f"weights of {weights / 1e9:.0f} GB on each of {unit.devices} devices, but "
            f"{hardware.name} has {usable / 1e9:.0f} GB to use; serve over more devices"
        )
    per_token = count(config).cache_bytes_per_token // 2 * cache_bytes
    per_user = per_token * context
    users = int((usable - weights) // per_user)
    batch = min(users, 256) if batch is None else batch
    if not 1 <= batch <= users:
        raise ConfigError(
            f"{batch} users of {context:,} tokens on a device, but {users} fit beside the weights; "
            "lower --users or --context, or serve over more devices"
        )
    passes = 2 if unit.devices > 1 else 1  # each half of the batch reads the weights
    memory_s = (passes * weights + batch * per_user) / (hardware.bandwidth * BANDWIDTH_SHARE)
    arithmetic_s = batch * decode_seconds(config, hardware, context, precision, efficiency)
    network_s = batch * _sent_s(config, hardware, unit)
    times = {"memory": memory_s, "arithmetic": arithmetic_s, "network": network_s}
    bound = max(times, key=lambda name: times[name])
    step = times[bound]
    return Serving(
        devices=unit.devices,
        context=context,
        weight_bytes=weights,
        cache_bytes_per_token=per_token,
        cache_bytes_per_user=per_user,
        users_per_device=users,
        batch=batch,
        memory_s=memory_s,
        arithmetic_s=arithmetic_s,
        network_s=network_s,
        decode_tokens_per_s=batch / step,
        tokens_per_s_per_user=1 / step,
        prefill_tokens_per_s=1 / prefill_seconds(config, hardware, context, precision, efficiency),
        bound=bound,
    )


def _sent_s(config: ModelConfig, hardware: Accelerator, unit: Unit) -> float:
    """Seconds that one token's dispatch and combine take in all MoE blocks of a unit."""
    if unit.devices == 1:
        return 0.0
    one_node = unit.devices <= hardware.devices_per_node
    link = hardware.intra_node if one_node else hardware.inter_node
    if link is None:
        raise ConfigError(
            f"nobody states how fast {hardware.name} sends between nodes; give --inter-node in "
            "bytes a second, or serve within one node"
        )
    return token_bytes(config) / link * _moe_layers(config)


def device_weights(config: ModelConfig, unit: Unit, precision: str) -> int:
    """Bytes on one device: everything but routed experts whole, and its slots of these."""
    parts = count(config).total
    width = 1 + 4 / 128**2 if precision == "fp8" else 4 if precision == "float32" else 2
    high = 2 * (parts.embedding + parts.head + parts.router + parts.norms)
    moe = _moe_layers(config)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    slots = moe * unit.slots_per_device * expert
    return int(high + width * (parts.attention + parts.dense + parts.shared + slots))


def decode_seconds(
    config: ModelConfig, hardware: Accelerator, context: int, precision: str, efficiency: float
) -> float:
    """Arithmetic of one token: its parameters, and absorbed attention in BF16 over its cache."""
    counts = count(config)
    core = 2 * config.num_hidden_layers * config.num_attention_heads * context * (
        config.latent_size + config.kv_lora_rank)  # fmt: skip
    high = hardware.peak("bfloat16") * efficiency
    return 2 * counts.params_active / (hardware.peak(precision) * efficiency) + core / high


def prefill_seconds(
    config: ModelConfig, hardware: Accelerator, prompt: int, precision: str, efficiency: float
) -> float:
    """Of one prompt token, attention unfolded and causal."""
    counts = count(config)
    core = counts.num_blocks * counts.core_flops_per_position * prompt / 2
    matrices = 2 * (counts.params_active - counts.active.head)
    high = hardware.peak("bfloat16") * efficiency
    return matrices / (hardware.peak(precision) * efficiency) + core / high


def token_bytes(config: ModelConfig) -> int:
    """Sent for one token in one MoE layer, there and back, to each of its experts."""
    copies = config.num_experts_per_tok + config.n_shared_experts
    return (DISPATCH_BYTES + COMBINE_BYTES) * copies * config.hidden_size


def step_bound_s(
    link: float, *, batch: int = 32, copies: int = 9, hidden_size: int = 7000, layers: int = 61
) -> float:
    """The shortest step by the network alone, for two halves of a batch in turn.

    "Insights" counts the shared expert as a ninth copy and 7168 as 7K: 14.76 ms at 50 GB/s.
    """
    one_way = (DISPATCH_BYTES + COMBINE_BYTES) * batch * copies * hidden_size / link
    return 2 * one_way * layers


def _moe_layers(config: ModelConfig) -> int:
    return config.num_hidden_layers - config.first_k_dense_replace


# Figures of the online service, 24 hours to noon (UTC+8) of 28 February 2025 ("Inference System
# Overview"): tokens, and prices in dollars a million.
NODES, NODE_DEVICES = 226.75, 8
INPUT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS = 608e9, 342e9, 168e9
CACHED_PRICE, INPUT_PRICE, OUTPUT_PRICE = 0.14, 0.55, 2.19


def service_cost(dollars_per_hour: float = 2.0) -> float:
    """A day of that service in dollars."""
    return NODES * NODE_DEVICES * 24 * dollars_per_hour


def service_revenue() -> float:
    """What those tokens would have cost at the prices of R1, in dollars."""
    missed = INPUT_TOKENS - CACHED_TOKENS
    sold = CACHED_TOKENS * CACHED_PRICE + missed * INPUT_PRICE + OUTPUT_TOKENS * OUTPUT_PRICE
    return sold / 1e6
