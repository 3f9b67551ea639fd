"""How a model is spread over devices: data, pipeline and expert parallelism, ZeRO-1, recomputation.

    devices = dp x pp            (DualPipeV: dp x pp/2, two stages a device)
    ep of the dp ranks share the routed experts of a stage between them

DeepSeek-V3 (arXiv 2412.19437), section 3.2: pp 16, ep 64, dp 128, ZeRO-1, no tensor parallelism.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.count import count
from abyssal.plan.schedules import Schedule, check

Recompute = Literal["none", "norms", "blocks"]
_CHOICES = {
    "zero": (0, 1),
    "recompute": ("none", "norms", "blocks"),
    "precision": ("bfloat16", "float32", "fp8"),
    "moments": ("bfloat16", "float32"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One way to train; a step is `sequences` of `seq_len` tokens over all devices."""

    dp: int = 1  # data-parallel ranks: each pipeline is one
    pp: int = 1  # pipeline stages
    ep: int = 1  # ranks that share one copy of the routed experts; divides dp
    zero: Literal[0, 1] = 0  # 1: masters and moments are spread over the ranks that repeat them
    recompute: Recompute = "none"  # norms: RMSNorm and MLA's up-projections; blocks: all but inputs
    precision: Literal["bfloat16", "float32", "fp8"] = "bfloat16"
    moments: Literal["bfloat16", "float32"] = "bfloat16"
    schedule: Schedule = "1f1b"
    micro_sequences: int = 1  # of one forward and backward pass
    sequences: int = 1
    seq_len: int = 4096

    def __post_init__(self) -> None:
        for name in ("dp", "pp", "ep", "micro_sequences", "sequences"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.seq_len < 2:
            raise ConfigError(f"seq_len={self.seq_len}, expected at least 2 tokens")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                expected = ", ".join(map(str, choices))
                raise ConfigError(f"{name}={getattr(self, name)!r}, expected one of {expected}")
        if self.dp % self.ep:
            raise ConfigError(
                f"ep={self.ep} does not divide dp={self.dp}: experts are spread over data-parallel "
                "ranks; choose an ep that divides dp, or change the number of devices"
            )
        shared = self.dp * self.micro_sequences
        if self.sequences % shared:
            raise ConfigError(
                f"{self.sequences} sequences a step do not divide over dp={self.dp} ranks of "
                f"{self.micro_sequences} at a time; take a multiple of {shared} sequences"
            )
        check(self.schedule, self.pp, self.micro_batches)

    @property
    def micro_batches(self) -> int:
        """Of each data-parallel rank in a step."""
        return self.sequences // (self.dp * self.micro_sequences)

    @property
    def has_sums(self) -> bool:
        """Whether a step's gradients are sums, in float32, of micro-batches or ranks."""
        return self.dp > 1 or self.micro_batches > 1

    @property
    def micro_tokens(self) -> int:
        """Tokens of one forward and backward pass."""
        return self.micro_sequences * self.seq_len

    @property
    def step_tokens(self) -> int:
        """Tokens of a step over all devices."""
        return self.sequences * self.seq_len

    @property
    def ranks(self) -> int:
        """Devices of one pipeline."""
        return self.pp // 2 if self.schedule == "dualpipev" else self.pp

    @property
    def devices(self) -> int:
        """All devices."""
        return self.dp * self.ranks

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The pipeline stages that a rank holds: DualPipe's come from both ends."""
        paired = self.schedule.startswith("dualpipe")
        return (rank, self.pp - 1 - rank) if paired else (rank,)

    def check(self, config: ModelConfig) -> None:
        """Refuse a model that cannot be spread this way.

        Raises:
            ConfigError: there are fewer blocks than stages, or experts do not divide.
        """
        if self.pp > config.num_hidden_layers:
            raise ConfigError(
                f"pp={self.pp} stages, but the model has {config.num_hidden_layers} blocks; take "
                f"pp of at most {config.num_hidden_layers}"
            )
        if config.n_routed_experts % self.ep:
            fitting = [n for n in range(1, self.dp + 1)
                       if self.dp % n == 0 and config.n_routed_experts % n == 0]  # fmt: skip
            raise ConfigError(
                f"ep={self.ep} does not divide the model's {config.n_routed_experts} routed "
                f"experts; take one of {', '.join(map(str, fitting))}"
            )


class Stage(NamedTuple):
    """What one pipeline stage holds."""

    dense_blocks: int
    moe_blocks: int
    first: bool  # the embedding
    last: bool  # the final norm, the head, the MTP modules


def stages(config: ModelConfig, layout: Layout) -> list[Stage]:
    """Blocks to stages, so that every device has about as much to compute."""
    counts = count(config)
    heads = 1 + counts.num_mtp_blocks
    block = (counts.params_active - counts.active.head) / counts.num_blocks
    extra = (heads * counts.active.head + counts.mtp_active.total) / block  # in blocks
    blocks = [1] * layout.pp
    load = [float(len(layout.stages_of(rank))) for rank in range(layout.ranks)]
    owner = {stage: rank for rank in range(layout.ranks) for stage in layout.stages_of(rank)}
    owners = [
        [rank for rank in range(layout.ranks) if stage in layout.stages_of(rank)]
        for stage in range(layout.pp)
    ]
    for rank in owners[-1]:
        load[rank] += extra
    for _ in range(config.num_hidden_layers - layout.pp):
        # Of the least loaded device, the stage with fewer blocks; the last counts its extras.
        stage = min(
            range(layout.pp),
            key=lambda s: (load[owner[s]], blocks[s] + (extra if s == layout.pp - 1 else 0)),
        )
        blocks[stage] += 1
        for rank in owners[stage]:
            load[rank] += 1
    found, start = [], 0
    for i, size in enumerate(blocks):
        dense = max(0, min(config.first_k_dense_replace, start + size) - start)
        found.append(Stage(dense, size - dense, i == 0, i == layout.pp - 1))
        start += size
    return found
