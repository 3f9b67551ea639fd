"""Speed of generation beside transformers and llama.cpp: the same model, in turn, in one run.

    python benchmarks/serve.py [out/demo/model] [--batches 1 8 32] [--rounds 5] [--json]

Within a process: LLM.generate, `generate` of transformers, and llama.cpp through its C interface.
Over HTTP: `abyssal serve` and llama.cpp's own Python server, under the same client. Every engine
has a process of its own that stays up; they take turns at each batch of prompts, and the figure is
the median over the rounds of output tokens per second, reading the prompts included. Answers are
greedy and never end early. No prompt comes twice, so no figure is a hit in a prefix cache.

A peer that can run in several ways takes the fastest one at each batch size, and its answers are
compared with ours in FP32: "same" is how much of our answer its own begins with, on average over
the first round. llama.cpp is `pip install llama-cpp-python[server]==0.3.36 gguf`, built natively.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from engines import ENGINES, NEEDS, Answers
from worker import Worker

from abyssal.config import ModelConfig
from abyssal.data.corpus import stories
from abyssal.tokenizer.bpe import Tokenizer

REFERENCE = "abyssal (FP32)"


@dataclass(slots=True)
class Figures:
    """One engine at one batch size."""

    way: str  # to run
    rates: list[float] = field(default_factory=list)  # tokens per second of each round
    same: float | None = None  # as the reference; None without it

    @property
    def rate(self) -> float:
        return median(self.rates)


Results = dict[str, dict[int, Figures]]  # by engine and batch size


def main() -> None:
    """Let all engines take turns, then print one table."""
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
    options.add_argument("--only", default="", help="engines whose names hold this text")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    context = ModelConfig.load(args.folder).max_position_embeddings
    if args.prompt + args.new > context:
        options.error(f"--prompt and --new are more than the model's context of {context} tokens")
    return args


def _measure(args: argparse.Namespace) -> Results:
    tokenizer = Tokenizer.load(args.folder)
    prompts = _prompts(tokenizer, args.prompt)
    names = [name for name in ENGINES if args.only in name and _is_there(name)]
    results: Results = {name: {} for name in names}
    with contextlib.ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {
            name: stack.enter_context(
                Worker(name, args.folder, files, args.prompt + args.new, args.threads)
            )
            for name in names
        }
        for batch in args.batches:
            for name, worker in workers.items():
                way = worker.tune(list(itertools.islice(prompts, batch)), args.new)
                results[name][batch] = Figures(way)
            for turn in range(args.rounds):
                together = list(itertools.islice(prompts, batch))
                _take_turns(workers, together, args.new, results, tokenizer)
                rates = (f"{name} {results[name][batch].rates[-1]:,.0f}" for name in names)
                print(f"batch {batch}, round {turn + 1}: {', '.join(rates)}", file=sys.stderr)
    return results


def _take_turns(
    workers: Mapping[str, Worker],
    prompts: list[list[int]],
    count: int,
    results: Results,
    tokenizer: Tokenizer,
) -> None:
    """Give every engine the same prompts; note its rate and, the first time, its answers."""
    reference: Answers = []
    for name, worker in workers.items():
        elapsed_s, answers = worker.generate(prompts, count)
        figures = results[name][len(prompts)]
        figures.rates.append(len(prompts) * count / elapsed_s)
        reference = answers if name == REFERENCE else reference
        if reference and figures.same is None:
            pairs = zip(reference, answers, strict=True)
            figures.same = fmean(_same(ours, theirs, tokenizer) for ours, theirs in pairs)


def _prompts(tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    """Beginnings of different stories; their text alone is read as the same tokens."""
    for story in stories():
        tokens = tokenizer.encode(story, bos=True)[:length]
        if len(tokens) == length and tokenizer.encode(tokenizer.decode(tokens), bos=True) == tokens:
            yield tokens
    raise SystemExit(f"too few stories of {length} tokens; ask for fewer rounds or shorter prompts")


def _same(ours: list[int], theirs: list[int] | str, tokenizer: Tokenizer) -> float:
    """The share of our answer, up to where it would have ended, that theirs begins with."""
    end = ours.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ours else len(ours)
    expected = tokenizer.decode(ours[:end]) if isinstance(theirs, str) else ours[:end]
    pairs = zip(expected, theirs, strict=False)
    agreed = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return agreed / len(expected) if expected else 1.0


def _is_there(name: str) -> bool:
    missing = [m for m in NEEDS.get(ENGINES[name][0], ()) if importlib.util.find_spec(m) is None]
    if missing:
        print(f"{name} is left out: {', '.join(missing)} is not installed", file=sys.stderr)
    return not missing


def _ours(name: str) -> str:
    """Which of our engines stands beside this one."""
    kind, precision = ENGINES[name]
    if kind.endswith(("serve", "server")):
        return "abyssal serve (FP32)"
    return next(ours for ours, how in ENGINES.items() if how == ("abyssal", precision))


def _ratio(results: Results, name: str, batch: int) -> float | None:
    """How many times as fast ours is; None for our own, or if it did not take part."""
    ours = _ours(name)
    if ours == name or ours not in results:
        return None
    return results[ours][batch].rate / results[name][batch].rate


def _gain(batches: Mapping[int, Figures]) -> float:
    """How many times the tokens of the smallest batch the largest one gives."""
    return batches[max(batches)].rate / batches[min(batches)].rate


def _report(results: Results, args: argparse.Namespace) -> dict[str, Any]:
    packages = {"torch": "torch", "transformers": "transformers", "llama_cpp": "llama-cpp-python"}
    versions = {
        package: importlib.metadata.version(package)
        for module, package in packages.items()
        if importlib.util.find_spec(module)
    }
    engines = {
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
    return {"run": run | {"folder": str(args.folder)}, "versions": versions, "engines": engines}


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
    print("ours: how many times as fast abyssal is in the same precision (servers: in FP32)")
    print("gain: the largest batch over the smallest; same: how much of our FP32 answer is theirs")


if __name__ == "__main__":
    main()
