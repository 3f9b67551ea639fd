"""What changes over a run, keyed to tokens seen: learning rate, batch size, MTP weight, bias speed.

    warm-up, constant, cosine, constant, constant        DeepSeek-V3 (arXiv 2412.19437), section 4.2

A curve is a tuple of segments. Because the batch grows over a run, steps are no measure of
progress; only the warm-up of the learning rate counts steps, as in the paper. No torch here.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from abyssal.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A piece of a curve, from where the last one ended to `until`."""

    until: float  # tokens seen; up to 1: a share of the run's tokens
    to: float  # the value at the end
    shape: Literal["constant", "linear", "cosine"] = "constant"
    start: float | None = None  # the value at the beginning, if not where the last segment ended

    def __post_init__(self) -> None:
        if self.until <= 0:
            raise ConfigError(
                f"a schedule segment ends at until={self.until}, expected more than 0 tokens"
            )
        if not all(math.isfinite(value) for value in (self.to, self.start or 0.0)):
            raise ConfigError(
                f"a schedule segment goes from start={self.start} to={self.to}, "
                "expected finite numbers"
            )


Curve = tuple[Segment, ...]


def constant(value: float) -> Curve:
    """The curve that never moves."""
    return (Segment(until=1, to=value),)


def value_at(curve: Curve, tokens: float, total: float) -> float:
    """The curve's value after `tokens` of a run of `total` tokens; past its end, its last value."""
    began, before = 0.0, curve[0].to
    for segment in curve:
        ends = segment.until * total if segment.until <= 1 else segment.until
        before = before if segment.start is None else segment.start
        if tokens < ends:
            return _within(segment, before, (tokens - began) / (ends - began))
        began, before = ends, segment.to
    return before


def _within(segment: Segment, before: float, share: float) -> float:
    if segment.shape == "linear":
        return before + (segment.to - before) * share
    if segment.shape == "cosine":
        return segment.to + (before - segment.to) * (1 + math.cos(math.pi * share)) / 2
    return segment.to


def check_ascending(curve: Curve, name: str, total: float) -> None:
    """Refuse a curve that is empty or whose segments do not follow one another."""
    if not curve:
        raise ConfigError(
            f"{name} is empty; expected at least one segment, such as {{until = 1, to = 1.0}}"
        )
    ends = [s.until * total if s.until <= 1 else s.until for s in curve]
    for earlier, later in pairwise(ends):
        if later <= earlier:
            raise ConfigError(
                f"{name}: a segment ends at {later:g} tokens, not after the one before "
                f"({earlier:g}); "
                "put them in order"
            )
