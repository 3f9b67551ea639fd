"""How an engine shares a machine among its requests, and what it tells of its work. No torch."""

from dataclasses import dataclass
from typing import Literal

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How an engine shares a machine among its requests."""

    max_running: int = 64  # answers under way at once
    max_step_tokens: int = 2048  # in one pass
    chunk: int = 512  # of one prompt in one pass
    max_waiting: int | None = None  # in the queue; None: without end
    cache_bytes: int | None = None  # for latents; None: half of what is free, or all that is of use
    cache_dtype: Literal["bfloat16", "int8"] | None = None  # of latents; None: the model's
    draft: int = 0  # tokens guessed ahead by the MTP module
    deterministic: bool = False  # bits of an answer do not depend on company; slower
    prefix_cache: bool = True  # prompts that begin alike are read once

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("max_running", "max_step_tokens", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1")
        for name in ("max_waiting", "draft"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}, expected 0 or more")
        if self.cache_dtype not in (None, "bfloat16", "int8"):
            raise ConfigError(
                f"cache_dtype={self.cache_dtype!r}, expected 'bfloat16' or 'int8', or None for the "
                "model's own precision"
            )
        if self.max_step_tokens < self.max_running:
            raise ConfigError(
                f"max_step_tokens={self.max_step_tokens} is less than one token for each of "
                f"max_running={self.max_running} answers; raise the first or lower the second"
            )

    def check(self, config: ModelConfig) -> None:
        """Refuse what this model cannot do."""
        if self.draft and not config.num_nextn_predict_layers:
            raise ConfigError(
                f"draft={self.draft}, but the model has no MTP module to draft with "
                "(num_nextn_predict_layers=0); leave draft at 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What an engine is doing, and has done since it began."""

    requests_running: int
    requests_waiting: int
    pages_in_use: int
    pages_total: int
    preemptions: int
    prompt_tokens: int
    prompt_tokens_cached: int  # of them, found in the prefix cache
    generation_tokens: int
    drafted: list[int]  # guesses verified, by how far ahead they were
    accepted: list[int]  # ... that were right
    steps: int
    expert_load: list[list[int]]  # tokens by MoE layer and expert
    step_s: float  # the latest step in all ...
    schedule_s: float  # ... and what of it the scheduler took
