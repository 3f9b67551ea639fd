"""The service under many impatient clients: what it owes them, and what it has left afterwards.

    python benchmarks/soak.py [FOLDER] [--minutes 5] [--streams 64] [--json]

Two trials of one `abyssal serve` process, on this machine's loopback alone. In the first, `streams`
clients stream answers one after the other for `minutes`, and three in ten hang up in the middle.
Everybody else must get a whole answer; afterwards pages, file descriptors and threads are where
they were, and the memory of the second half has not grown. In the second, five times as many
clients come as the service admits: those turned away must hear 429 with Retry-After at once, and
those admitted get at least nine tenths of what the service gives at its capacity.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from pathlib import Path

import httpx

from abyssal.serve.process import served

PROMPTS = [
    "Tell me a story about a dog.", "Write a story about a magic hat.", "Hello!",
    "Tell me a story about two friends who find a boat on the beach and sail away.",
    "What is the capital of France?", "Once there was a dragon. What did it eat?",
]  # fmt: skip
HANG_UP = 0.3  # of all streams
RUNNING, WAITING = 16, 16  # what the second trial's service admits
OVERLOAD = 5


def main() -> None:
    """Both trials, one after the other."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", nargs="?", default="out/demo/model")
    options.add_argument("--minutes", type=float, default=5)
    options.add_argument("--streams", type=int, default=64)
    options.add_argument("--overload-s", type=float, default=30)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    with served(args.folder, "--max-running", "64", "--max-waiting", "64") as (url, running):
        pid = running.process.pid
        soaked = asyncio.run(soak(url, pid, args.streams, args.minutes * 60))
    limits = ("--max-running", str(RUNNING), "--max-waiting", str(WAITING))
    with served(args.folder, *limits) as (url, running):
        overloaded = asyncio.run(overload(url, args.overload_s))
        lines = [json.loads(line) for line in running.lines() if '"status": 429' in line]
    overloaded["refused_ms_at_server"] = _quantiles([line["ms"] for line in lines])
    results = {"soak": soaked, "overload": overloaded}
    if args.json:
        print(json.dumps(results))
        return
    for trial, figures in results.items():
        print(trial)
        for name, value in figures.items():
            print(f"  {name:28} {value}")


async def soak(url: str, pid: int, streams: int, seconds: float) -> dict[str, object]:
    """Streams for a while, three in ten given up in the middle."""
    counts: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    memory: list[int] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        # What is built for a first crowd, a pool of threads among it, is there at the baseline.
        await asyncio.gather(*(_stream(http, seed, None) for seed in range(streams)))
        before = await _holdings(http, pid)
        ends = time.monotonic() + seconds

        async def client(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < ends:
                patience = rng.randrange(1, 40) if rng.random() < HANG_UP else None
                try:
                    tokens, whole = await _stream(http, rng.randrange(2**31), patience)
                except (httpx.HTTPError, ValueError) as problem:
                    problems[repr(problem)[:80]] += 1
                    continue
                counts["tokens"] += tokens
                counts["given up" if patience and not whole else "whole"] += 1
                if not patience and not whole:
                    problems["an answer without its end"] += 1

        async def watch() -> None:
            while time.monotonic() < ends:
                memory.append(_rss_mb(pid))
                await asyncio.sleep(seconds / 60)

        await asyncio.gather(watch(), *(client(i) for i in range(streams)))
        await asyncio.sleep(3)
        after = await _holdings(http, pid)
    half = len(memory) // 2
    return {
        **counts,
        "errors": dict(problems),
        "tokens_per_s": round(counts["tokens"] / seconds),
        "before": before,
        "after": after,
        "memory_mb": [memory[len(memory) // 10], memory[half], memory[-1]],
        "memory_growth_mb_2nd_half": round(
            statistics.mean(memory[-5:]) - statistics.mean(memory[half : half + 5]), 1
        ),
    }


async def overload(url: str, seconds: float) -> dict[str, object]:
    """The throughput at capacity, and with five times as many clients."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        capacity = RUNNING + WAITING
        peak, _, _ = await _crowd(http, capacity, seconds)
        under, refused_ms, problems = await _crowd(http, OVERLOAD * capacity, seconds)
    return {
        "clients_at_capacity": capacity,
        "tokens_per_s_at_capacity": round(peak),
        "clients_in_overload": OVERLOAD * capacity,
        "tokens_per_s_in_overload": round(under),
        "share_kept": round(under / peak, 3),
        "refused": len(refused_ms),
        "refused_ms_at_client": _quantiles(refused_ms),
        "errors": dict(problems),
    }


async def _crowd(
    http: httpx.AsyncClient, clients: int, seconds: float
) -> tuple[float, list[float], Counter[str]]:
    """Tokens per second, how long refusals took, and what else went wrong."""
    ends = time.monotonic() + seconds
    refused_ms: list[float] = []
    problems: Counter[str] = Counter()
    tokens = 0

    async def client(number: int) -> None:
        nonlocal tokens
        rng = random.Random(number)
        while time.monotonic() < ends:
            began = time.perf_counter()
            reply = await http.post("/v1/chat/completions", json=_body(rng.randrange(2**31)))
            if reply.status_code == 200:
                tokens += reply.json()["usage"]["completion_tokens"]
            elif reply.status_code == 429 and "Retry-After" in reply.headers:
                refused_ms.append(1000 * (time.perf_counter() - began))
                await asyncio.sleep(float(reply.headers["Retry-After"]) * rng.uniform(1, 1.5))
            else:
                problems[f"{reply.status_code} {reply.text[:60]}"] += 1

    began = time.monotonic()
    await asyncio.gather(*(client(i) for i in range(clients)))
    return tokens / (time.monotonic() - began), refused_ms, problems


def _quantiles(values_ms: list[float]) -> dict[str, float]:
    """The median and what one in a hundred exceeds."""
    if len(values_ms) < 2:
        return {}
    p99 = statistics.quantiles(values_ms, n=100)[98]
    return {"median": round(statistics.median(values_ms), 1), "p99": round(p99, 1)}


def _body(seed: int) -> dict[str, object]:
    question = {"role": "user", "content": PROMPTS[seed % len(PROMPTS)]}
    return {
        "model": "deepseek-chat", "messages": [question], "max_tokens": 60 + seed % 60,
        "seed": seed, "temperature": 0.8, "ignore_eos": True,
    }  # fmt: skip


async def _stream(http: httpx.AsyncClient, seed: int, patience: int | None) -> tuple[int, bool]:
    """Events read of one stream, and whether it came to its end."""
    body = {**_body(seed), "stream": True}
    events, last = 0, ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise ValueError(f"{reply.status_code} {(await reply.aread())[:60]!r}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            last = line
            events += 1
            if events == patience:
                return events, False
    return events, last == "data: [DONE]"


async def _holdings(http: httpx.AsyncClient, pid: int) -> dict[str, float]:
    """What the service holds: cache in use, requests, descriptors, threads."""
    metrics = (await http.get("/metrics")).text
    names = ("vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting")
    found = {name: float(re.search(rf"^{name}{{.*}} (\S+)", metrics, re.M)[1]) for name in names}
    await asyncio.sleep(1)  # connections closed by us are noticed
    return found | {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


def _rss_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024


if __name__ == "__main__":
    main()
