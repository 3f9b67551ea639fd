"""What the scheduler itself costs: plan and commit of a step in which every request writes a token.

    python benchmarks/scheduler.py [--requests 32] [--steps 1000] [--json]

No model runs, but everything else is real: each request takes a page every 64 tokens, and its full
pages are hashed and registered for the prefix cache. Prompts differ in length, so that not all
borders of pages fall into one step. The median is a step like most; the 99th percentile is one
where several requests came to the end of a page.
"""

import argparse
import json
import random
import time
from statistics import mean, median, quantiles

from abyssal.engine.pages import PAGE, PagePool, pages_for
from abyssal.engine.request import Request, SamplingParams
from abyssal.engine.scheduler import Scheduler


def main() -> None:
    """Time the steps and print one line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--requests", type=int, default=32)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    times_us = _times_us(args.requests, args.steps)
    figures = {
        "requests": args.requests,
        "steps": args.steps,
        "median_us": median(times_us),
        "p99_us": quantiles(times_us, n=100)[-1],
        "mean_us": mean(times_us),
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(
        f"{args.requests} requests, {args.steps:,} steps: median {figures['median_us']:.1f} us, "
        f"p99 {figures['p99_us']:.1f} us, mean {figures['mean_us']:.1f} us a step"
    )


def _times_us(num_requests: int, num_steps: int) -> list[float]:
    """Microseconds of plan and commit together, of each step after all prompts are read."""
    draw = random.Random(0)
    scheduler = _filled(num_requests, num_steps, draw)
    times_us = []
    for _ in range(num_steps):
        tokens = [[draw.randrange(4096)] for _ in range(num_requests)]
        start = time.perf_counter()
        step = scheduler.plan()
        assert step is not None, "nobody has finished yet"
        for entry, token in zip(step.entries, tokens, strict=True):
            scheduler.commit(entry, token)
        times_us.append((time.perf_counter() - start) * 1e6)
    assert not scheduler.num_preemptions, "there were pages for all"
    return times_us


def _filled(num_requests: int, num_steps: int, draw: random.Random) -> Scheduler:
    """A scheduler whose requests have all read their prompts and go on for num_steps."""
    answer = num_requests + num_steps  # reading all prompts takes at most a step for each
    longest = 2 * PAGE + answer
    pool = PagePool(1 + num_requests * pages_for(longest))
    scheduler = Scheduler(pool, context=longest, max_running=num_requests)
    for number in range(num_requests):
        prompt = [draw.randrange(4096) for _ in range(draw.randrange(PAGE, 2 * PAGE))]
        params = SamplingParams(max_tokens=answer)
        scheduler.add(Request(id=number, tokens=prompt, params=params))
    while scheduler.num_waiting or any(not live.written for live in scheduler.running):
        step = scheduler.plan()
        assert step is not None, "prompts are still waiting"
        for entry in step.entries:
            scheduler.commit(entry, [draw.randrange(4096)] if entry.is_last else [])
    return scheduler


if __name__ == "__main__":
    main()
