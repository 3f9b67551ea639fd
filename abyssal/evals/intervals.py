"""How far a score of so many samples may be from the true one, at 95%.

    shares     Wilson's interval of k right answers in n (E. B. Wilson, JASA 22, 1927)
    the rest   percentiles of means, or ratios, over samples drawn anew (Efron's bootstrap, 1979)

No torch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # 97.5% of a normal distribution lie below
RESAMPLES = 1000


class Interval(NamedTuple):
    """A score and where the true one lies, 95 times in 100."""

    value: float
    low: float
    high: float


def wilson(right: int, count: int) -> Interval:
    """The share right / count; [0, 1] where nothing was counted."""
    if not count:
        return Interval(math.nan, 0.0, 1.0)
    share, weight = right / count, Z * Z / count
    center = (share + weight / 2) / (1 + weight)
    spread = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    # 0 and 1 are ends of the interval of no and of all right; rounding must not pass them.
    low = 0.0 if right == 0 else center - spread
    high = 1.0 if right == count else center + spread
    return Interval(share, low, high)


def bootstrap(above: Sequence[float], below: Sequence[float] | None = None) -> Interval:
    """sum(above) / sum(below) over samples, the mean where `below` is None; always the same draw.

    Samples come in pairs: bits and bytes of one document, say.
    """
    top = np.asarray(above, dtype=np.float64)
    bottom = np.ones_like(top) if below is None else np.asarray(below, dtype=np.float64)
    if not len(top):
        return Interval(math.nan, -math.inf, math.inf)
    draw = np.random.default_rng(0)
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        chosen = draw.integers(len(top), size=len(top))
        found[i] = top[chosen].sum() / bottom[chosen].sum()
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(math.fsum(top) / math.fsum(bottom), float(low), float(high))


def interval(scores: Sequence[float]) -> Interval:
    """Of a mean: Wilson's where every sample is right or wrong, else the bootstrap."""
    if all(score in (0.0, 1.0) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores)
