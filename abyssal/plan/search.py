"""The cheapest layout that fits: every way to spread a model that its sizes allow, the best first.

Hours are what is cheap: of layouts on the same number of devices, the fastest step. Recomputation
is taken only where a layout does not fit without.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.hardware import Accelerator
from abyssal.plan.layout import Layout
from abyssal.plan.memory import Memory, largest
from abyssal.plan.schedules import SCHEDULES, Schedule
from abyssal.plan.time import EFFICIENCY, StepTime, plan_time

RESERVE = 0.1  # of a device's memory: context, buffers of communication, fragments


class Found(NamedTuple):
    """A layout that fits, and what it takes."""

    layout: Layout
    memory: Memory
    time: StepTime


def search(
    config: ModelConfig,
    hardware: Accelerator,
    devices: int,
    like: Layout,
    *,
    efficiency: float = EFFICIENCY,
    reserve: float = RESERVE,
) -> list[Found]:
    """Layouts of exactly `devices` devices that fit, the fastest first.

    `like` gives precision, moments, sequences and seq_len of a step; sequences are rounded up to
    what divides.

    Raises:
        ConfigError: none fits.
    """
    if devices < 1:
        raise ConfigError(f"devices={devices}, expected at least 1")
    usable = hardware.memory_bytes * (1 - reserve)
    found, smallest = list[Found](), math.inf
    for candidate in candidates(config, devices, like):
        for recompute in ("none", "norms", "blocks"):
            layout = replace(candidate, recompute=recompute)
            memory = largest(config, layout, cpu=hardware.cpu)
            smallest = min(smallest, memory.total)
            if memory.total <= usable:
                time = plan_time(config, layout, hardware, efficiency)
                found.append(Found(layout, memory, time))
                break
    if not found:
        least = f"the least is {smallest / 1e9:,.0f} GB" if smallest < math.inf else "none divides"
        raise ConfigError(
            f"no layout of {devices} {hardware.name} fits {usable / 1e9:,.0f} GB a device: "
            f"{least}; take more devices, or another precision"
        )
    return sorted(found, key=lambda one: one.time.total_s / one.time.step_tokens)


def candidates(config: ModelConfig, devices: int, like: Layout) -> Iterator[Layout]:
    """All layouts of so many devices, without recomputation."""
    for schedule in SCHEDULES:
        for pp in _powers(config.num_hidden_layers):
            ranks = pp // 2 if schedule == "dualpipev" else pp
            if pp == 1 and schedule != "1f1b":
                continue
            if devices % ranks:
                continue
            dp = devices // ranks
            for ep in _powers(min(dp, config.n_routed_experts)):
                if dp % ep or config.n_routed_experts % ep:
                    continue
                yield from _layouts(like, schedule, pp, ep, dp)


def _layouts(like: Layout, schedule: Schedule, pp: int, ep: int, dp: int) -> Iterator[Layout]:
    """That layout over as many sequences as divide, if the schedule can be filled."""
    shared = dp * like.micro_sequences
    micro = -(-like.sequences // shared)
    if schedule == "dualpipe":
        micro += micro % 2
    try:
        yield replace(
            like, schedule=schedule, pp=pp, ep=ep, dp=dp, zero=1 if dp > 1 else 0,
            sequences=micro * shared,
        )  # fmt: skip
    except ConfigError:  # too few micro-batches for this schedule: not a layout
        return


def _powers(limit: int) -> list[int]:
    """1, 2, 4 ... up to a limit."""
    return [1 << i for i in range(limit.bit_length())] if limit else []
