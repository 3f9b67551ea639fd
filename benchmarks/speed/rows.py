"""The rows of the tables: who takes part, what each is asked for, and what it costs.

Every function adds figures to a Bench; the commands in benchmarks/ call one each, cpu.py all.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from abyssal.config import ModelConfig
from speed import costs
from speed.bench import Bench, Engines, Entrant, Figure
from speed.worker import Unavailable, Worker

CONTEXT = 128  # tokens before the answers of `decode`
STEPS = 32  # in a block behind them
PASSES: Engines = [
    ("abyssal", "bf16"),
    ("abyssal", "int8"),
    ("abyssal", "int4"),
    ("abyssal LLM", "bf16"),
    ("llama.cpp", "bf16"),
    ("llama.cpp", "q8_0"),
    ("llama.cpp", "q4_0"),
    ("transformers", "bf16"),
    ("vLLM", "bf16"),
]
IN_FP32: Engines = [("abyssal", "fp32"), ("transformers", "fp32")]
PUBLIC: Engines = [("abyssal LLM", "bf16"), ("abyssal LLM", "int8"), ("vLLM", "bf16")]
LOADED: Engines = [
    ("abyssal LLM", "bf16"),
    ("abyssal LLM", "int8"),
    ("llama.cpp", "bf16"),
    ("llama.cpp", "q8_0"),
    ("transformers", "bf16"),
]
TRAINERS: Engines = [
    ("abyssal training", "bf16"),
    ("transformers training", "bf16"),
    ("transformers compiled", "bf16"),
]
LAYER: Engines = [("abyssal", "fp8")]


def model_of(engine: str, model: str) -> str:
    """vLLM has no attention for the heads of S and takes S64."""
    return "S64" if engine == "vLLM" and model == "S" else model


def passes(model: str) -> Engines:
    """Who decodes and reads prompts; FP32 is compared on the small model alone."""
    return PASSES + IN_FP32 if model == "S" else PASSES


def decode(bench: Bench, model: str, batch: int) -> None:
    """Output tokens a second of a whole batch, behind CONTEXT tokens each."""
    _row(
        bench,
        Figure("decode", model, "", "", batch, "tok/s", amount=batch),
        passes(model),
        warm={"do": "prepare", "batch": batch, "context": CONTEXT},
        ask={"do": "decode", "steps": STEPS, "least_s": bench.args.least_s},
        cost=lambda config, kind: costs.decode(config, kind, batch, CONTEXT),
    )


def prefill(bench: Bench, model: str, tokens: int) -> None:
    """Prompt tokens a second, one prompt, up to the scores behind it."""
    _row(
        bench,
        Figure("prefill", model, "", "", tokens, "tok/s", amount=tokens),
        passes(model),
        warm={"do": "prefill", "tokens": tokens, "least_s": 0.0},
        ask={"do": "prefill", "tokens": tokens, "least_s": bench.args.least_s},
        cost=lambda config, kind: costs.prefill(config, kind, tokens),
    )


def first_token(bench: Bench, model: str, tokens: int) -> None:
    """Seconds from the public call to the first token behind a prompt."""
    _row(
        bench,
        Figure("first token", model_of("vLLM", model), "", "", tokens, "s"),
        PUBLIC,
        warm={"do": "first_token", "tokens": tokens, "least_s": 0.0},
        ask={"do": "first_token", "tokens": tokens, "least_s": bench.args.least_s},
        cost=lambda config, kind: costs.prefill(config, kind, tokens),
    )


def serving(bench: Bench, model: str, requests: int, new: int) -> None:
    """Output tokens a second of requests given all at once, at most 32 of them under way."""
    lengths = [64 + 37 * i % 64 for i in range(requests)]
    running = min(bench.args.most, requests)
    _row(
        bench,
        Figure(
            "serving", model_of("vLLM", model), "", "", requests, "tok/s", amount=requests * new
        ),
        PUBLIC,
        warm={"do": "serve", "lengths": lengths[:running], "new": 4},
        ask={"do": "serve", "lengths": lengths, "new": new},
        cost=lambda config, kind: costs.serving(config, kind, lengths, new, running),
    )


def cache(bench: Bench, model: str) -> None:
    """Bytes of cache that a token of context takes, as each engine holds it."""
    for engine, kind, worker in _workers(bench, model, passes(model)):
        if found := _asked(bench, engine, kind, worker, {"do": "cache_bytes"}):
            shape = model_of(engine, model)
            bench.keep([Figure("cache", shape, engine, kind, 1, "bytes/token", [found])])


def memory(bench: Bench, model: str) -> None:
    """The most bytes that each process has held so far."""
    for engine, kind, worker in _workers(bench, model, passes(model)):
        _peak(bench, engine, kind, model_of(engine, model), worker)


def load(bench: Bench, model: str) -> None:
    """Seconds from a running interpreter with torch to a first token; files are in memory.

    vLLM's is that of the process that other rows use.
    """
    entrants = []
    for engine, kind in bench.chosen(LOADED):
        try:
            bench.open(engine, kind, model, length=512).close()  # files are read
        except Unavailable:
            continue  # said by the rows before
        figure = Figure("load", model, engine, kind, 1, "s")
        entrants.append(Entrant(figure, None, partial(_load_s, bench, figure)))
    bench.turns(entrants)
    for engine, kind, worker in _workers(bench, model, [("vLLM", "bf16")]):
        row = Figure("load", model_of(engine, model), engine, kind, 1, "s", [worker.load_s])
        bench.keep([row])


def train(bench: Bench, model: str, rows: int, length: int, steps: int) -> None:
    """Tokens a second of forward, backward and AdamW; the share is MFU."""
    entrants = []
    for engine, kind in bench.chosen(TRAINERS):
        try:
            worker = bench.trainer(engine, model, rows, length)
        except Unavailable as problem:
            bench.leave_out(engine, kind, problem)
            continue
        figure = Figure("training", model, engine, kind, rows * length, "tok/s")
        figure.amount = rows * length
        figure.cost = costs.training(bench.config(model), rows, length)
        ask = {"do": "train", "steps": steps}
        entrants.append(Entrant(figure, worker, partial(_value, figure, worker, ask)))
    bench.turns(entrants)
    for figure, worker, _ in entrants:
        assert worker
        _peak(bench, figure.engine, figure.kind, model, worker, "peak memory of training")
        worker.close()


def layer(bench: Bench, batch: int) -> None:
    """One full-size layer, decoding in FP8: what the released model is made of."""
    _row(
        bench,
        Figure("layer", "L", "", "", batch, "tok/s", amount=batch),
        LAYER,
        warm={"do": "prepare", "batch": batch, "context": CONTEXT},
        ask={"do": "decode", "steps": 8, "least_s": 1.0},
        cost=lambda config, kind: costs.decode(config, kind, batch, CONTEXT),
        length=CONTEXT,
    )
    for engine, kind, worker in _workers(bench, "L", LAYER, length=CONTEXT):
        _peak(bench, engine, kind, "L", worker)


def _row(
    bench: Bench,
    what: Figure,
    wanted: Engines,
    *,
    warm: dict[str, object],
    ask: dict[str, object],
    cost: Callable[[ModelConfig, str], costs.Cost],
    length: int = 2048,
) -> None:
    """One figure like `what` of each engine that can take part; all warm up first."""
    entrants = []
    for engine, kind, worker in _workers(bench, what.model, wanted, length=length):
        _asked(bench, engine, kind, worker, warm)
        if not worker.is_running:
            continue
        model = model_of(engine, what.model)
        possible = cost(bench.config(model), kind)
        figure = replace(what, engine=engine, kind=kind, model=model, cost=possible)
        figure.values, figure.others, figure.machine = [], [], []
        entrants.append(Entrant(figure, worker, partial(_value, figure, worker, ask)))
    bench.turns(entrants)


def _value(figure: Figure, worker: Worker, ask: dict[str, object]) -> float:
    """The median sample of a turn: seconds, or how much of `amount` is done in one."""
    elapsed_s: float = median(worker.ask(**ask))
    return figure.amount / elapsed_s if figure.amount else elapsed_s


def _load_s(bench: Bench, figure: Figure) -> float:
    with bench.open(figure.engine, figure.kind, figure.model, length=512) as worker:
        return worker.load_s


def _peak(
    bench: Bench, engine: str, kind: str, model: str, worker: Worker, row: str = "peak memory"
) -> None:
    if found := _asked(bench, engine, kind, worker, {"do": "memory"}):
        peak = found["peak"] / 2**20
        bench.keep([Figure(row, model, engine, kind, 1, "MiB", [peak])])


def _asked(bench: Bench, engine: str, kind: str, worker: Worker, message: dict[str, object]) -> Any:
    """The answer; None from an engine that ended, which is said, and takes no more part."""
    try:
        return worker.ask(**message)
    except Unavailable as problem:
        bench.leave_out(engine, kind, problem)
        return None


def _workers(
    bench: Bench, model: str, wanted: Engines, *, length: int = 2048
) -> list[tuple[str, str, Worker]]:
    return [
        (engine, kind, worker)
        for engine, kind in bench.chosen(wanted)
        if (worker := bench.engine(engine, kind, model_of(engine, model), length=length))
    ]
