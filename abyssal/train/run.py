"""Everything that decides a training run, whatever its stage: one frozen dataclass per TOML table.

The defaults are the paper's (DeepSeek-V3, arXiv 2412.19437, section 4.2). Stages add what is
theirs, beside the data: pretrain.py the model, all that tune one where it is (`Tuning`).
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abyssal.errors import ConfigError
from abyssal.train.guard import GuardRules
from abyssal.train.lora import Lora
from abyssal.train.optim import Optim
from abyssal.train.schedule import Curve, Segment, check_ascending


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """A shard folder written by ``abyssal prepare``, and its share of the mixture."""

    name: str
    shards: Path
    weight: float = 1.0  # in tokens, relative to the other sources


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where tokens come from and how they are laid out."""

    sources: tuple[DataSource, ...]
    held_out: tuple[DataSource, ...] = ()  # scored in bits per byte, never trained on
    held_out_documents: int = 100  # of each, the first ones
    isolate: bool = False  # whether a document sees only itself; in pre-training it sees its row
    fim_rate: float = 0.1  # documents rearranged to fill in the middle (section 4.1)

    def __post_init__(self) -> None:
        if self.held_out_documents < 1:
            raise ConfigError(
                f"held_out_documents={self.held_out_documents}, expected at least 1; "
                "leave held_out away to score none"
            )
        names = [source.name for source in self.held_out]
        if len(set(names)) < len(names):
            raise ConfigError(f"held_out is named {names}; expected each name once")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """Tokens of a step: `sequences` of `seq_len`, computed `micro_sequences` at a time."""

    seq_len: int = 4096
    sequences: Curve = (Segment(until=469e9, start=3072, to=15360, shape="linear"),)
    micro_sequences: int = 1

    def __post_init__(self) -> None:
        if self.seq_len < 2 or self.micro_sequences < 1:
            raise ConfigError(
                f"batch.seq_len={self.seq_len} and micro_sequences={self.micro_sequences}, "
                "expected at least 2 and 1"
            )

    @property
    def micro_tokens(self) -> int:
        """Tokens of one forward and backward pass."""
        return self.seq_len * self.micro_sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How experts are kept equally busy."""

    gamma: Curve = (Segment(until=14.3e12, to=0.001), Segment(until=14.8e12, to=0.0))
    alpha: float = 1e-4  # weight of the sequence-wise balance loss

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"alpha={self.alpha}, expected a number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the loop needs to know."""

    out: Path  # becomes the model folder
    tokenizer: Path
    tokens: float = 14.8e12  # to train on in all
    minutes: float | None = None  # ceiling: plan fewer tokens if this machine would take longer
    seed: int = 0
    batch: Batching = field(default_factory=Batching)
    optim: Optim = field(default_factory=Optim)
    balance: Balance = field(default_factory=Balance)
    mtp_lambda: Curve = (Segment(until=10e12, to=0.3), Segment(until=14.8e12, to=0.1))
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    zero: Literal[0, 1] = 0  # 1: several processes share masters and moments (parallel/zero.py)
    recompute: bool = False  # keep only block inputs for the backward
    save_every: int = 500  # steps
    keep: int = 2  # saved states
    eval_every: int = 500  # steps
    samples: tuple[str, ...] = ()  # prompts completed at the end, for the report
    guard: GuardRules = field(default_factory=GuardRules)

    def __post_init__(self) -> None:
        if self.tokens < self.batch.micro_tokens:
            raise ConfigError(
                f"tokens={self.tokens:g} is less than one pass of {self.batch.micro_tokens} tokens "
                f"(batch.seq_len {self.batch.seq_len} x micro_sequences "
                f"{self.batch.micro_sequences})"
            )
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes={self.minutes}, expected more than 0, or no ceiling")
        for name in ("save_every", "eval_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1")
        curves = {
            "optim.schedule": self.optim.schedule,
            "batch.sequences": self.batch.sequences,
            "balance.gamma": self.balance.gamma,
            "mtp_lambda": self.mtp_lambda,
        }
        for name, curve in curves.items():
            check_ascending(curve, name, self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning(Run):
    """A run that goes on with a model."""

    init: Path  # its folder
    lora: Lora | None = None  # learn through adapters, and leave the model itself as it is

    def __post_init__(self) -> None:
        Run.__post_init__(self)
        moves = any(part.to or part.start for part in self.balance.gamma)
        if self.lora is not None and moves:
            raise ConfigError(
                "balance.gamma moves the gates' biases, but with [lora] the model stays as it is; "
                "set gamma = [{ until = 1, to = 0.0 }]"
            )
