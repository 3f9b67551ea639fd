"""Abyssal, twice: bare passes of the model, as peers are timed, and the engine that users call."""

import torch

from abyssal import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.pages import PAGE
from abyssal.engine.request import SamplingParams
from abyssal.engine.runner import Reading
from speed.engine import Engine, Prompts

CAST = {"fp32": torch.float32, "bf16": torch.bfloat16}  # other kinds are what a folder holds
ANSWER = 256  # tokens at most behind a prompt


class Requests(Engine):
    """LLM as anybody calls it: scheduler, sampler and decoding to text included."""

    def __init__(self, folder: str, kind: str, threads: int, sequences: int, length: int):
        super().__init__(folder)
        torch.set_num_threads(threads)
        options = EngineOptions(max_running=sequences, prefix_cache=False)
        self._llm = LLM(folder, dtype=CAST.get(kind), options=options)
        self._open: list[int] = []
        self.complete([[300]], 1)

    def read(self, prompts: Prompts) -> None:
        """Steps of the engine until every prompt has its first token."""
        engine = self._llm.engine
        self._give_up()
        params = SamplingParams(temperature=0, max_tokens=ANSWER * 8, ignore_eos=True)
        requests = self._llm.prompts.requests(prompts, params)
        self._prompts_read, self._open = prompts, [request.id for request in requests]
        for request in requests:
            engine.add(request)
        waiting = set(self._open)
        while waiting:
            waiting -= {delta.request_id for delta in engine.step()}

    def step(self) -> None:
        """One step of the engine."""
        self._llm.engine.step()

    def rewind(self) -> None:
        """The prompts again."""
        self.read(self._prompts_read)

    def complete(self, prompts: Prompts, count: int) -> None:
        """LLM.generate."""
        self._give_up()
        done = self._llm.generate(prompts, temperature=0, max_tokens=count, ignore_eos=True)
        assert all(len(completion.tokens) == count for completion in done)

    def _give_up(self) -> None:
        """Forget the prompts of `read`, whose answers are still being written."""
        for request in self._open:
            self._llm.engine.abort(request)
        self._open = []

    def cache_bytes(self) -> float | None:
        """Of the pool of pages, by the tokens they hold."""
        pool = self._llm.engine._cache.pool
        return pool.nbytes / (pool.shape[1] * PAGE)


class Passes(Requests):
    """The engine's runner alone: tokens in, scores out, as with llama.cpp."""

    def __init__(self, folder: str, kind: str, threads: int, sequences: int, length: int):
        super().__init__(folder, kind, threads, sequences, length)
        self._runner = self._llm.engine._runner
        self._each = -(-(length + ANSWER) // PAGE)  # pages of a sequence

    def read(self, prompts: Prompts) -> None:
        """All of them in one pass."""
        self._lengths = [0] * len(prompts)
        self._pass(prompts)
        self._ends = list(self._lengths)

    def step(self) -> None:
        """One pass over a token of each sequence."""
        tokens = self._fed(self._lengths[0], len(self._lengths))
        self._pass([[token] for token in tokens])

    def rewind(self) -> None:
        """What the cache holds behind the prompts is written over."""
        self._lengths = list(self._ends)

    @torch.inference_mode()
    def _pass(self, pieces: Prompts) -> None:
        """Read a piece of each sequence; scores behind each."""
        readings, last, end = [], [], 0
        for i, piece in enumerate(pieces):
            pages = range(1 + i * self._each, 1 + (i + 1) * self._each)
            readings.append(Reading(piece, pages, self._lengths[i]))
            self._lengths[i] += len(piece)
            end += len(piece)
            last.append(end - 1)
        self._runner.read(readings, last)
