"""A watch on loss and gradient: a step that would poison the weights is skipped, a row of them
undone.

The report had no irrecoverable spike in 14.8T tokens; a run on new data should survive one anyway.
"""

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

from abyssal.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardRules:
    """When a step counts as bad."""

    window: int = 64  # good steps that the next one is held against
    deviations: float = 8.0  # standard deviations above their mean loss
    margin: float = 0.5  # ... and at least this many nats
    patience: int = 5  # bad steps in a row before the run goes back to its last saved state

    def __post_init__(self) -> None:
        if self.window < 2 or self.patience < 1 or self.deviations <= 0 or self.margin < 0:
            raise ConfigError(
                f"guard has window={self.window}, patience={self.patience}, "
                f"deviations={self.deviations}, margin={self.margin}; expected window >= 2, "
                "patience >= 1, deviations > 0, margin >= 0"
            )


class Verdict(Enum):
    """What to do with a step."""

    TAKE = "take"
    SKIP = "skip"
    REWIND = "rewind"


class Guard:
    """Judge each step by its loss and gradient norm before it moves a weight."""

    def __init__(self, rules: GuardRules):
        self.rules = rules
        self.recent: deque[float] = deque(maxlen=rules.window)
        self.bad = 0

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """Take a step, skip it, or, after `patience` bad ones in a row, rewind."""
        if math.isfinite(loss) and math.isfinite(grad_norm) and loss <= self.ceiling():
            self.recent.append(loss)
            self.bad = 0
            return Verdict.TAKE
        self.bad += 1
        if self.bad < self.rules.patience:
            return Verdict.SKIP
        self.bad = 0
        return Verdict.REWIND

    def ceiling(self) -> float:
        """The highest loss that is no spike; no limit until the window is full."""
        if len(self.recent) < self.rules.window:
            return math.inf
        mean = sum(self.recent) / len(self.recent)
        variance = sum((x - mean) ** 2 for x in self.recent) / len(self.recent)
        return mean + max(self.rules.deviations * math.sqrt(variance), self.rules.margin)

    def state(self) -> dict[str, object]:
        """As JSON knows it."""
        return {"recent": list(self.recent), "bad": self.bad}

    def restore(self, state: dict[str, object]) -> None:
        """Take back what `state` gave."""
        recent, bad = state["recent"], state["bad"]
        assert isinstance(recent, list)
        assert isinstance(bad, int)
        self.recent = deque(recent, maxlen=self.rules.window)
        self.bad = bad
