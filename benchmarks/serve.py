"""Speed of the service beside llama.cpp's: the same model and client, in turn, in one run.

    python benchmarks/serve.py [out/demo/model] [--batches 1 8 32] [--rounds 5] [--json]

`abyssal serve` and llama.cpp's own Python server, over HTTP, under the same client. Each stays up;
they take turns at each batch of prompts, and the figure is the median over the rounds of output
tokens per second, reading the prompts included. Answers are greedy and never end early. No prompt
comes twice, so no figure is a hit in a prefix cache. Engines without servers: decode.py.

A server that can run in several ways takes the fastest one at each batch size, and its answers are
compared with ours: "same" is how much of our answer its own begins with, on average over the first
round. The peer is installed by `pip install -e '.[bench]'`.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from servers import Server, abyssal_serve, llama_serve

from abyssal.config import ModelConfig
from abyssal.data.corpus import stories
from abyssal.tokenizer.bpe import Tokenizer

REFERENCE = "abyssal serve"
SERVERS = {REFERENCE: "", "llama.cpp server (FP32)": "f32", "llama.cpp server (BF16)": "bf16"}
NEEDED = ("llama_cpp", "gguf", "sse_starlette", "starlette_context")  # by the peer


@dataclass(slots=True)
class Figures:
    """One server at one batch size."""

    way: str  # to run
    rates: list[float] = field(default_factory=list)  # tokens per second of each round
    same: float | None = None  # as ours; None without it

    @property
    def rate(self) -> float:
        return median(self.rates)


Results = dict[str, dict[int, Figures]]  # by server and batch size


def main() -> None:
    """Let all servers take turns, then print one table."""
    args = _arguments()
    results = _measure(args)
    if args.json:
        print(json.dumps(_report(results, args)))
    else:
        _show(results)


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, nargs="?", default=Path("out/demo/model"))
    options.add_argument("--prompt", type=int, default=64, help="tokens of a prompt, BOS included")
    options.add_argument("--new", type=int, default=128, help="tokens of an answer")
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--only", default="", help="servers whose names hold this text")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    context = ModelConfig.load(args.folder).max_position_embeddings
    if args.prompt + args.new > context:
        options.error(f"--prompt and --new are more than the model's context of {context} tokens")
    return args


def _measure(args: argparse.Namespace) -> Results:
    tokenizer = Tokenizer.load(args.folder)
    prompts = _prompts(tokenizer, args.prompt)
    results: Results = {}
    with contextlib.ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {name: _server(name, files, args) for name in SERVERS if _takes_part(name, args)}
        for server in servers.values():
            stack.callback(server.close)
        for batch in args.batches:
            for name, server in servers.items():
                way = _tune(server, list(itertools.islice(prompts, batch)), args.new)
                results.setdefault(name, {})[batch] = Figures(way)
            for turn in range(args.rounds):
                together = list(itertools.islice(prompts, batch))
                _take_turns(servers, together, args.new, results)
                rates = (f"{name} {results[name][batch].rates[-1]:,.0f}" for name in servers)
                print(f"batch {batch}, round {turn + 1}: {', '.join(rates)}", file=sys.stderr)
    return results


def _server(name: str, files: Path, args: argparse.Namespace) -> Server:
    kind = SERVERS[name]
    if not kind:
        return abyssal_serve(args.folder, args.threads)
    from abyssal.quant.gguf_file import export

    export(args.folder, files / f"{kind}.gguf", kind)
    length = args.prompt + args.new
    return llama_serve(args.folder, files / f"{kind}.gguf", length, args.threads)


def _tune(server: Server, prompts: list[list[int]], count: int) -> str:
    """Which way to run is fastest for these prompts; it is warm then, and runs so."""
    length = len(prompts[0]) + count
    times: dict[str, float] = {}
    for way in server.ways if len(server.ways) > 1 else ():
        server.choose(way, len(prompts), length)
        server.generate(prompts, 2)  # kernels are prepared, threads are up
        times[way] = min(_timed(server, prompts, max(count // 4, 2))[0] for _ in range(2))
    best = min(times, key=times.__getitem__, default=server.ways[0])
    server.choose(best, len(prompts), length)
    server.generate(prompts, count)
    return best


def _timed(server: Server, prompts: list[list[int]], count: int) -> tuple[float, list[str]]:
    start = time.perf_counter()
    answers = server.generate(prompts, count)
    return time.perf_counter() - start, answers


def _take_turns(
    servers: Mapping[str, Server], prompts: list[list[int]], count: int, results: Results
) -> None:
    """Give every server the same prompts; note its rate and, the first time, its answers."""
    reference: list[str] = []
    for name, server in servers.items():
        elapsed_s, answers = _timed(server, prompts, count)
        figures = results[name][len(prompts)]
        figures.rates.append(len(prompts) * count / elapsed_s)
        reference = answers if name == REFERENCE else reference
        if reference and figures.same is None:
            figures.same = fmean(map(_same, reference, answers))


def _prompts(tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    """Beginnings of different stories; their text alone is read as the same tokens."""
    for story in stories():
        tokens = tokenizer.encode(story, bos=True)[:length]
        if len(tokens) == length and tokenizer.encode(tokenizer.decode(tokens), bos=True) == tokens:
            yield tokens
    raise SystemExit(f"too few stories of {length} tokens; ask for fewer rounds or shorter prompts")


def _same(ours: str, theirs: str) -> float:
    """The share of our answer that theirs begins with."""
    pairs = zip(ours, theirs, strict=False)
    agreed = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return agreed / len(ours) if ours else 1.0


def _takes_part(name: str, args: argparse.Namespace) -> bool:
    missing = [m for m in NEEDED if SERVERS[name] and importlib.util.find_spec(m) is None]
    if missing:
        print(f"{name} is left out: {', '.join(missing)} is not installed", file=sys.stderr)
    return args.only in name and not missing


def _ratio(results: Results, name: str, batch: int) -> float | None:
    """How many times as fast ours is; None for our own, or if it did not take part."""
    if name == REFERENCE or REFERENCE not in results:
        return None
    return results[REFERENCE][batch].rate / results[name][batch].rate


def _gain(batches: Mapping[int, Figures]) -> float:
    """How many times the tokens of the smallest batch the largest one gives."""
    return batches[max(batches)].rate / batches[min(batches)].rate


def _report(results: Results, args: argparse.Namespace) -> dict[str, Any]:
    packages = {"torch": "torch", "llama_cpp": "llama-cpp-python"}
    versions = {
        package: importlib.metadata.version(package)
        for module, package in packages.items()
        if importlib.util.find_spec(module)
    }
    servers = {
        name: {
            "gain": _gain(batches),
            "batches": {
                batch: {
                    "tokens_per_s": figures.rate,
                    "abyssal_is": _ratio(results, name, batch),
                    "rounds": figures.rates,
                    "same": figures.same,
                    "way": figures.way,
                }
                for batch, figures in batches.items()
            },
        }
        for name, batches in results.items()
    }
    run = {key: getattr(args, key) for key in ("prompt", "new", "rounds", "threads")}
    return {"run": run | {"folder": str(args.folder)}, "versions": versions, "servers": servers}


def _show(results: Results) -> None:
    sizes = sorted({batch for batches in results.values() for batch in batches})
    heads = "".join(f"{f'batch {size}':>11}{'ours':>7}" for size in sizes)
    print(f"{'output tok/s':24}{heads}{'gain':>7}{'same':>7}  runs best as")
    for name, batches in results.items():
        line = f"{name:24}"
        for batch, figures in batches.items():
            ratio = _ratio(results, name, batch)
            line += f"{figures.rate:11,.0f}" + (f"{ratio:6.2f}x" if ratio else " " * 7)
        known = [figures.same for figures in batches.values() if figures.same is not None]
        same = f"{fmean(known):7.1%}" if known else " " * 7
        ways = ", ".join(dict.fromkeys(figures.way for figures in batches.values()))
        print(f"{line}{_gain(batches):6.1f}x{same}  {ways}")
    print("ours: how many times as fast abyssal is")
    print("gain: the largest batch over the smallest; same: how much of our answer is theirs")


if __name__ == "__main__":
    main()
