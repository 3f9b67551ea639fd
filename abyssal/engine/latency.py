"""When the tokens of many requests came, and what that says about whoever wrote them.

Throughput counts the tokens of all requests together. The time to the first token is what a reader
waits, queue and prompt included; the time between tokens is how smoothly the rest comes. No torch:
the same figures are taken of an engine and, over HTTP, of any server.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from abyssal.errors import RequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What to ask for: this many requests, `concurrency` of them at any time."""

    concurrency: int
    prompt_tokens: int = 128
    answer_tokens: int = 128
    requests: int = 0  # in all; 0: twice the concurrency, and at least 4
    temperature: float = 1.0
    seed: int = 0  # of the random prompts

    def __post_init__(self) -> None:
        """Refuse loads of nothing, and settle how many requests there are."""
        for name in ("concurrency", "prompt_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.requests < 0:
            raise RequestError(f"requests={self.requests}, expected 0 or more")
        object.__setattr__(self, "requests", self.requests or max(4, 2 * self.concurrency))


@dataclass(slots=True)
class Timeline:
    """One request; all times in seconds of one clock."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)  # of tokens, or of pieces of text
    prompt_tokens: int = 0
    answer_tokens: int = 0
    num_refused: int = 0  # times it was told to come again later
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """How one load was served; a figure is None where nothing was there to measure."""

    concurrency: int
    requests: int  # served to their end
    failed: int
    refused: int  # answers of 429; each such request was sent again
    prompt_tokens: int  # of all requests served
    answer_tokens: int
    elapsed_s: float
    tokens_per_s: float  # written, all requests together
    requests_per_s: float
    first_token_median_ms: float | None
    first_token_p99_ms: float | None
    between_tokens_median_ms: float | None
    between_tokens_p99_ms: float | None
    first_error: str | None = None
    draft_acceptance: list[float] | None = None  # by how far ahead was guessed, if at all


def measured(
    timelines: Sequence[Timeline],
    concurrency: int,
    elapsed_s: float,
    draft_acceptance: list[float] | None = None,
) -> Figures:
    """The figures of requests that ran within elapsed_s seconds."""
    served = [line for line in timelines if line.error is None]
    errors = [line.error for line in timelines if line.error is not None]
    first = [1e3 * (line.arrivals_s[0] - line.sent_s) for line in served if line.arrivals_s]
    between = [1e3 * gap for line in served for gap in np.diff(line.arrivals_s).tolist()]
    tokens = sum(line.answer_tokens for line in served)
    return Figures(
        concurrency=concurrency,
        requests=len(served),
        failed=len(errors),
        refused=sum(line.num_refused for line in timelines),
        prompt_tokens=sum(line.prompt_tokens for line in served),
        answer_tokens=tokens,
        elapsed_s=elapsed_s,
        tokens_per_s=tokens / elapsed_s,
        requests_per_s=len(served) / elapsed_s,
        first_token_median_ms=_quantile(first, 0.5),
        first_token_p99_ms=_quantile(first, 0.99),
        between_tokens_median_ms=_quantile(between, 0.5),
        between_tokens_p99_ms=_quantile(between, 0.99),
        first_error=errors[0] if errors else None,
        draft_acceptance=draft_acceptance,
    )


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None
