"""An engine in a process of its own, which benchmarks/serve.py asks one thing at a time."""

import contextlib
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from engines import Answers, Engine, Prompts, open_engine


class Worker:
    """The asking side. The process stays up, asleep while others have their turn."""

    def __init__(self, name: str, folder: Path, files: Path, length: int, threads: int):
        # Read when the libraries load. Unbound, two threads sometimes start on one core.
        os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "true"}
        os.environ |= {"OMP_PLACES": "cores", "TOKENIZERS_PARALLELISM": "false"}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, name, folder, files, length, threads)
        )
        self._process.start()
        theirs.close()
        self._name = name
        self._answer()  # it is ready; the next one may use files it has made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._pipe.close()
        self._process.join()

    def tune(self, prompts: Prompts, count: int) -> str:
        """Which way to run is fastest for these prompts; it is warm then, and runs so."""
        self._pipe.send(("tune", prompts, count))
        way: str = self._answer()
        return way

    def generate(self, prompts: Prompts, count: int) -> tuple[float, Answers]:
        """How many seconds it took to write count tokens behind every prompt, and those."""
        self._pipe.send(("generate", prompts, count))
        answer: tuple[float, Answers] = self._answer()
        return answer

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"{self._name} ended; its last words are above") from None


def _work(
    pipe: Connection, name: str, folder: Path, files: Path, length: int, threads: int
) -> None:
    """The answering side, until the pipe closes."""
    os.dup2(2, 1)  # the output is for the table; libraries print where they like
    engine = open_engine(name, folder, files, length, threads)
    with contextlib.closing(engine), contextlib.suppress(EOFError, KeyboardInterrupt):
        pipe.send("ready")
        while True:
            what, prompts, count = pipe.recv()
            if what == "tune":
                pipe.send(_tune(engine, prompts, count))
            else:
                pipe.send(_timed(engine, prompts, count))


def _tune(engine: Engine, prompts: Prompts, count: int) -> str:
    length = len(prompts[0]) + count
    times: dict[str, float] = {}
    for way in engine.ways if len(engine.ways) > 1 else ():
        engine.choose(way, len(prompts), length)
        engine.generate(prompts, 2)  # kernels are prepared, threads are up
        times[way] = min(_timed(engine, prompts, max(count // 4, 2))[0] for _ in range(2))
    best = min(times, key=times.__getitem__, default=engine.ways[0])
    engine.choose(best, len(prompts), length)
    engine.generate(prompts, count)
    return best


def _timed(engine: Engine, prompts: Prompts, count: int) -> tuple[float, Answers]:
    start = time.perf_counter()
    answers = engine.generate(prompts, count)
    return time.perf_counter() - start, answers
