"""Turns: every engine in turn, several times, each turn behind a look at the machine.

A figure is the median of its turns, with the smallest and the largest beside it. A turn during
which anybody else used the processor is repeated, for engines whose threads wait for each other by
spinning lose far more than what they are deprived of.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from abyssal.config import ModelConfig
from speed.costs import Cost
from speed.models import MODELS, folder_of
from speed.worker import Unavailable, Worker

Engines = list[tuple[str, str]]  # name and kind of weights

QUIET = 0.06  # cores that others may use during a turn
TRIES = 3  # turns of which the quietest counts
SETTLE_S = 0.15  # threads of the engine before go to sleep
VLLM = {
    "VLLM_MLA_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
LLAMA_KINDS = ("bf16", "q8_0", "q4_0")
PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")  # with which vLLM is faster


@dataclass(slots=True)
class Figure:
    """One engine in one row: its turns, and what was possible."""

    row: str
    model: str
    engine: str
    kind: str
    size: int  # answers of a batch, tokens of a prompt or requests, as the row has it
    unit: str
    values: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)  # cores that others used, by turn
    machine: list[dict[str, float]] = field(default_factory=list)  # before each turn
    cost: Cost | None = None
    amount: float = 0.0  # what one unit of that cost gives, in `unit` times seconds

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def rates(self) -> dict[str, float]:
        """The machine, as it was in the median of these turns."""
        return {name: median(look[name] for look in self.machine) for name in self.machine[0]}

    @property
    def share(self) -> float | None:
        """Of the limit; below 1 for times as for rates."""
        if self.cost is None or not self.machine:
            return None
        least_s = self.cost.seconds(self.rates)
        if self.unit.endswith("/s"):
            return self.value * least_s / self.amount
        return least_s / self.value

    def report(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        about = asdict(self) | {"median": self.value, "share": self.share}
        about |= {"min": min(self.values), "max": max(self.values)}
        if self.cost:
            about["cost"] = self.cost._asdict()
            about["bound"] = self.cost.bound(self.rates) if self.machine else None
        return about


class Entrant(NamedTuple):
    """A figure, the worker that it is of, and what makes one value of it."""

    figure: Figure
    worker: Worker | None  # None: a process of its own each time
    work: Callable[[], float]


class Bench:
    """Options, the calibrator, and the engines that are open for one model."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.figures = args, list[Figure]()
        self._open: dict[tuple[str, str, str], Worker | None] = {}
        args.out.mkdir(parents=True, exist_ok=True)
        library = args.out / "calibrate.so"
        self._calibrator = self._worker("calibrator", library=str(library))

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()
        self._calibrator.close()

    def config(self, model: str) -> ModelConfig:
        """Of a model by name."""
        return MODELS[model]

    def chosen(self, wanted: Engines) -> Engines:
        """Those of them that the options ask for."""
        kinds, without = self.args.kinds, self.args.without
        return [(e, k) for e, k in wanted if e not in without and (not kinds or k in kinds)]

    def engine(self, engine: str, kind: str, model: str, *, length: int) -> Worker | None:
        """An engine that is kept open; None if it cannot take part, which is said once."""
        key = (engine, kind, model)
        if key not in self._open:
            self._open[key] = None
            try:
                self._open[key] = self.open(engine, kind, model, length=length)
            except Unavailable as problem:
                self.leave_out(engine, kind, problem)
        return self._open[key]

    def leave_out(self, engine: str, kind: str, problem: Unavailable) -> None:
        """Say why somebody does not take part, and do not ask again."""
        print(f"{engine} {kind} is left out: {problem}", file=sys.stderr, flush=True)
        for key in self._open:
            if key[:2] == (engine, kind):
                self._open[key] = None

    def open(self, engine: str, kind: str, model: str, *, length: int = 2048) -> Worker:
        """A fresh process with this engine.

        Raises:
            Unavailable: it is not installed, or does not run here.
        """
        options: dict[str, object] = {"sequences": self.args.most, "length": length, "kind": kind}
        ours = engine.startswith("abyssal")
        folder = folder_of(model, self.args.models_dir, kind if ours else "bf16")
        if engine == "llama.cpp":
            if not importlib.util.find_spec("llama_cpp"):
                raise Unavailable("pip install -e '.[bench]' installs it")
            if kind not in LLAMA_KINDS:
                raise Unavailable(f"llama.cpp has no file in {kind}")
            from speed.llama_file import file_of

            options["file"] = str(file_of(folder, kind))
        return self._worker(engine, f" {kind} {model}", folder=str(folder), **options)

    def trainer(self, engine: str, model: str, rows: int, length: int) -> Worker:
        """A fresh process that trains.

        Raises:
            Unavailable: it does not run here.
        """
        return self._worker(engine, f" {model}", model=model, rows=rows, length=length)

    def close(self) -> None:
        """End all engines."""
        for worker in filter(None, self._open.values()):
            worker.close()
        self._open.clear()

    def turns(self, entrants: Sequence[Entrant]) -> None:
        """Let all of them have their turns, round after round; who fails is left out."""
        for turn in range(self.args.rounds if entrants else 0):
            shown = []
            for figure, worker, work in entrants:
                try:
                    value, other, look = self._turn(work, worker)
                except Unavailable as problem:
                    self.leave_out(figure.engine, figure.kind, problem)
                    continue
                figure.values.append(value)
                figure.others.append(other)
                figure.machine.append(look)
                shown.append(f"{figure.engine} {figure.kind} {value:.4g}")
            first = entrants[0].figure
            place = f"{first.row} {first.model} {first.size}, turn {turn + 1} ({first.unit})"
            print(f"{place}: {', '.join(shown)}", file=sys.stderr, flush=True)
        self.keep([figure for figure, _, _ in entrants if figure.values])

    def keep(self, figures: Sequence[Figure]) -> None:
        """Add figures to the results and to the file of this run."""
        self.figures += figures
        with (self.args.out / "results.jsonl").open("a") as file:
            for figure in figures:
                file.write(json.dumps(figure.report()) + "\n")

    def look(self) -> dict[str, float]:
        """The machine as it is now."""
        time.sleep(SETTLE_S)
        found: dict[str, float] = self._calibrator.ask("measure")
        return found

    def _turn(
        self, work: Callable[[], float], worker: Worker | None
    ) -> tuple[float, float, dict[str, float]]:
        """The value of the quietest try, what others used meanwhile, and the machine before it."""
        tries = []
        for _ in range(1 if self.args.quick else TRIES):
            look = self.look()
            time.sleep(SETTLE_S)
            began, busy = time.perf_counter(), _busy_s()
            own = worker.busy_s() if worker else 0.0
            value = work()
            elapsed_s, used = time.perf_counter() - began, _busy_s() - busy
            # Processes that come and go during a turn cannot be told from others.
            other = max(used - worker.busy_s() + own, 0.0) / elapsed_s if worker else 0.0
            tries.append((value, other, look))
            if other <= QUIET:
                break
        return min(tries, key=lambda found: found[1])

    def _worker(self, engine: str, about: str = "", **options: object) -> Worker:
        if engine == "vLLM":
            environment = self._vllm()
        else:
            environment = {"OMP_NUM_THREADS": str(self.args.threads)}
        options["threads"] = self.args.threads
        log = self.args.out / "logs" / f"{engine}{about}.log".replace(" ", "-")
        return Worker(engine, log, environment, **options)

    def _vllm(self) -> dict[str, str]:
        python = self.args.vllm
        if not python:
            raise Unavailable("--vllm or ABYSSAL_VLLM_PYTHON names no interpreter that has it")
        if not Path(python).exists():
            raise Unavailable(f"{python} is not there")
        places = [Path(python).parent.parent / "lib", *map(Path, sorted(_LIBRARIES))]
        found = [next(iter(p / f for p in places if (p / f).exists()), None) for f in PRELOADED]
        libraries = ":".join(str(file) for file in found if file)
        binding = f"0-{self.args.threads - 1}"
        return VLLM | {
            "PYTHON": python,
            "LD_PRELOAD": libraries,
            "VLLM_CPU_OMP_THREADS_BIND": binding,
            "OMP_PROC_BIND": "false",  # it binds its threads itself
        }


_LIBRARIES = {"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"}


def _busy_s() -> float:
    """Processor seconds that the whole machine has used; 0 where nobody tells."""
    with contextlib.suppress(OSError):
        times = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, *rest = map(int, times)  # but idle, and waiting for disks
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def options(description: str) -> argparse.ArgumentParser:
    """What all commands can be told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="turns of each engine (3)")
    add("--least-s", type=float, default=0.5, help="seconds of samples in a turn (0.5)")
    add("--kinds", nargs="+", default=[], help="only these: bf16 int8 int4 fp8 fp32 q8_0 q4_0")
    add("--without", nargs="+", default=[], metavar="ENGINE", help="leave these engines out")
    add("--quick", action="store_true", help="one short turn each, small model; seconds")
    add("--threads", type=int, default=os.cpu_count())
    add("--out", type=Path, default=Path("out/bench"))
    add("--models-dir", type=Path, default=Path("out/bench/models"))
    add("--vllm", default=os.environ.get("ABYSSAL_VLLM_PYTHON"), help="an interpreter that has it")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Its arguments, --quick applied."""
    args = parser.parse_args()
    args.most = 32  # sequences at once
    if args.quick:
        args.rounds, args.least_s = 1, 0.1
    return args
