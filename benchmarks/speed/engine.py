"""What an engine is asked to do, and how its own process times it. The standard library alone.

An engine reads prompts, takes steps, and goes back to the end of its prompts, so that many blocks
of steps are timed behind one reading. `complete` is its public call, with everything around it.
"""

import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

Prompts = list[list[int]]
FEWEST = 3  # samples of a turn, unless one takes seconds


class Engine(ABC):
    """The base of all engines: a subclass has the work, this has the clock."""

    def __init__(self, folder: str):
        config = json.loads((Path(folder) / "config.json").read_text())
        self._vocab_size: int = config["vocab_size"]

    # An engine's own

    @abstractmethod
    def read(self, prompts: Prompts) -> None:
        """Forget everything and read these, up to the scores behind each."""

    def step(self) -> None:
        """One more token of every prompt."""
        raise TypeError(f"{type(self).__name__} is timed in another way")

    def rewind(self) -> None:
        """Back to the end of the prompts."""
        raise TypeError(f"{type(self).__name__} is timed in another way")

    def complete(self, prompts: Prompts, count: int) -> None:
        """`count` tokens behind each prompt, by the call that a user would make."""
        raise TypeError(f"{type(self).__name__} is timed in another way")

    def cache_bytes(self) -> float | None:
        """What one token of context takes in all layers; None if the engine does not tell."""
        return None

    # What a worker is asked for

    def prefill(self, tokens: int, least_s: float) -> list[float]:
        """Seconds of each reading of one prompt."""
        prompts = self._prompts([tokens])
        return _repeated(lambda: self.read(prompts), least_s)

    def prepare(self, batch: int, context: int) -> None:
        """Read a batch of prompts, for `decode`; kernels for its steps are made."""
        self.read(self._prompts([context] * batch))
        self.step()

    def decode(self, steps: int, least_s: float) -> list[float]:
        """Seconds of each step, in blocks of `steps` behind the prompts prepared."""
        samples: list[float] = []
        while len(samples) < FEWEST or sum(samples) < least_s:
            self.rewind()
            self.step()
            for _ in range(steps):
                samples.append(_timed(self.step))
                if len(samples) >= FEWEST and sum(samples) > 2 * least_s:
                    break
        return samples

    def first_token(self, tokens: int, least_s: float) -> list[float]:
        """Seconds from the public call to the first token behind a prompt."""
        prompts = self._prompts([tokens])
        return _repeated(lambda: self.complete(prompts, 1), least_s)

    def serve(self, lengths: list[int], new: int) -> list[float]:
        """Seconds until all of these requests, given at once, have `new` tokens."""
        prompts = self._prompts(lengths)
        return [_timed(lambda: self.complete(prompts, new))]

    def memory(self) -> dict[str, float]:
        """Bytes this process holds, and held at most."""
        lines = Path("/proc/self/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        kinds = {"now": "VmRSS", "peak": "VmHWM"}
        return {name: int(found[key].split()[0]) * 1024.0 for name, key in kinds.items()}

    def _prompts(self, lengths: list[int]) -> Prompts:
        """Prompts of random tokens, the same in every engine; none of the first few, which end."""
        draw = random.Random(0)
        return [[draw.randrange(300, self._vocab_size - 100) for _ in range(n)] for n in lengths]

    def _fed(self, position: int, count: int) -> list[int]:
        """The tokens at a position of `count` answers: no loop keeps a few experts in the cache."""
        return [300 + (position * 7 + i * 13) % 1000 for i in range(count)]


def _repeated(work: Callable[[], object], least_s: float) -> list[float]:
    samples: list[float] = []
    while len(samples) < FEWEST or sum(samples) < least_s:
        samples.append(_timed(work))
        if sum(samples) > 4 * max(least_s, 0.5):
            break
    return samples


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
