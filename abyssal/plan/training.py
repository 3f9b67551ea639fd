"""A run planned as a whole: does it fit, how long a step takes, what all its tokens cost.

Every stage is a training step over tokens; context extension has two phases, and learning from
rewards writes its tokens first (cost.py). Tokens that nobody stated have to be given.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan import cost
from abyssal.plan.cost import Cost
from abyssal.plan.hardware import Accelerator
from abyssal.plan.layout import Layout
from abyssal.plan.memory import Memory, plan_memory
from abyssal.plan.search import RESERVE
from abyssal.plan.serving import plan_serving, unit_for
from abyssal.plan.time import EFFICIENCY, StepTime, plan_time

# Of the two phases (section 4.3): tokens of a row, and rows of a step.
EXTENSION = {"32K": (32768, 1920), "128K": (131072, 480)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """One stage of one model on one cluster."""

    stage: str
    layout: Layout
    hardware: Accelerator
    memory: tuple[Memory, ...]  # of a device of every pipeline rank
    time: StepTime
    costs: Mapping[str, Cost]  # by phase
    reserve: float

    @property
    def largest(self) -> Memory:
        """Of the device that needs most."""
        return max(self.memory, key=lambda one: one.total)

    @property
    def usable_bytes(self) -> float:
        """Of a device's memory, what is not left free."""
        return self.hardware.memory_bytes * (1 - self.reserve)

    @property
    def fits(self) -> bool:
        """Whether every device has the memory."""
        return self.largest.total <= self.usable_bytes

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        time = self.time
        return {
            "stage": self.stage,
            "hardware": self.hardware.name,
            "devices": self.layout.devices,
            "layout": asdict(self.layout),
            "fits": self.fits,
            "usable_bytes": self.usable_bytes,
            "memory_bytes": [memory.to_dict() for memory in self.memory],
            "step": {
                **asdict(time),
                "total_s": time.total_s,
                "tokens_per_s": time.tokens_per_s,
                "device_hours_per_trillion": time.device_hours_per_trillion,
            },
            "costs": {name: asdict(one) for name, one in self.costs.items()},
        }


def plan_training(
    config: ModelConfig,
    layout: Layout,
    hardware: Accelerator,
    *,
    stage: str = "pretrain",
    tokens: float | None = None,
    efficiency: float = EFFICIENCY,
    reserve: float = RESERVE,
) -> TrainingPlan:
    """Plan a stage; `tokens` are those of the stage, for ``rl`` those of all answers.

    Raises:
        ConfigError: the layout does not divide, the hardware lacks what it needs, or the stage
            needs `tokens`.
    """
    if stage not in cost.STAGES:
        raise ConfigError(f"stage={stage!r}, expected one of {', '.join(cost.STAGES)}")
    if not 0 < efficiency <= 1 or not 0 <= reserve < 1:
        raise ConfigError(
            f"efficiency={efficiency:g} and reserve={reserve:g}, expected shares between 0 and 1"
        )
    memory = tuple(plan_memory(config, layout, cpu=hardware.cpu))
    time = plan_time(config, layout, hardware, efficiency)
    if stage == "extend" and tokens is None:
        return _extension(config, layout, hardware, efficiency, reserve)
    speed = time.tokens_per_s
    if stage == "rl":
        speed = _with_answers(config, layout, hardware, time, efficiency)
    seen = _tokens_of(stage, tokens)
    price = hardware.dollars_per_hour
    costs = {stage: cost.of_tokens(seen, speed, layout.devices, price)}
    return TrainingPlan(stage=stage, layout=layout, hardware=hardware, memory=memory, time=time,
                        costs=costs, reserve=reserve)  # fmt: skip


def _tokens_of(stage: str, tokens: float | None) -> float:
    if tokens is not None:
        return tokens
    if stage == "pretrain":
        return cost.PRETRAIN_TOKENS
    raise ConfigError(f"nobody states the tokens of stage {stage}; give --tokens")


def _extension(
    config: ModelConfig, layout: Layout, hardware: Accelerator, efficiency: float, reserve: float
) -> TrainingPlan:
    """Both phases, each over as many rows as divide; memory and time are those of the longer."""
    costs, price = {}, hardware.dollars_per_hour
    for name, (seq_len, rows) in EXTENSION.items():
        shared = layout.dp * layout.micro_sequences
        micro = max(-(-rows // shared), layout.micro_batches if layout.pp > 1 else 1)
        phase = replace(layout, seq_len=seq_len, sequences=micro * shared)
        time = plan_time(config, phase, hardware, efficiency)
        tokens = 1000.0 * rows * seq_len
        costs[name] = cost.of_tokens(tokens, time.tokens_per_s, layout.devices, price)
    hours = sum(one.device_hours for one in costs.values())
    costs["both"] = cost.of_hours(cost.EXTENSION_TOKENS, hours, layout.devices, price)
    memory = tuple(plan_memory(config, phase, cpu=hardware.cpu))
    return TrainingPlan(stage="extend", layout=phase, hardware=hardware, memory=memory, time=time,
                        costs=costs, reserve=reserve)  # fmt: skip


def _with_answers(
    config: ModelConfig,
    layout: Layout,
    hardware: Accelerator,
    time: StepTime,
    efficiency: float,
) -> float:
    """Answer tokens a second where the same devices write them first, in units of one copy."""
    size = 1
    while size < layout.devices:
        try:
            served = plan_serving(config, hardware, unit_for(config, size), context=layout.seq_len,
                                  precision=layout.precision, efficiency=efficiency)  # fmt: skip
            break
        except ConfigError:  # too small for the weights and one user
            size *= 2
    else:
        size = layout.devices
        served = plan_serving(config, hardware, unit_for(config, size), context=layout.seq_len,
                              precision=layout.precision, efficiency=efficiency)  # fmt: skip
    written = served.decode_tokens_per_s * layout.devices
    both = cost.Reinforcing(generated_per_s=written, trained_per_s=time.tokens_per_s)
    return both.tokens_per_s
