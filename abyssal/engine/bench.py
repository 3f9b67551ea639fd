"""How fast an engine is: random prompts, a fixed number of requests under way, every token timed.

Prompts share no block, so that no figure is a hit in the prefix cache; answers do not end early.
"""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from abyssal.engine.engine import Engine, Stats
from abyssal.engine.latency import Figures, Load, Timeline, measured
from abyssal.engine.llm import LLM
from abyssal.engine.request import Request, SamplingParams
from abyssal.errors import RequestError


def measure(llm: LLM, loads: Iterable[Load]) -> Iterator[Figures]:
    """The figures of each load, one after the other, once the engine is warm.

    Nobody else may use this LLM meanwhile.

    Raises:
        RequestError: prompt and answer are longer than the model's context or the cache.
    """
    loads = list(loads)
    for load in loads:
        _check(llm, load)
    if loads:
        _run(llm, Load(concurrency=1, prompt_tokens=8, answer_tokens=8, requests=1))
    for load in loads:
        yield _run(llm, load)


def acceptance(before: Stats, after: Stats) -> list[float] | None:
    """The share of guesses that were right between two looks at an engine, by how far ahead."""
    if not after.drafted:
        return None
    pairs = zip(after.drafted, before.drafted, strict=True)
    drafted = [late - early for late, early in pairs]
    pairs = zip(after.accepted, before.accepted, strict=True)
    accepted = [late - early for late, early in pairs]
    return [right / max(asked, 1) for right, asked in zip(accepted, drafted, strict=True)]


def _check(llm: LLM, load: Load) -> None:
    context = llm.config.max_position_embeddings
    if load.prompt_tokens + load.answer_tokens > context:
        raise RequestError(
            f"a prompt of {load.prompt_tokens} tokens and an answer of {load.answer_tokens} do not "
            f"fit the model's context of {context}; ask for shorter ones"
        )


def _run(llm: LLM, load: Load) -> Figures:
    engine = llm.engine
    before = engine.stats()
    waiting = iter(_requests(llm, load))
    timelines: dict[int, Timeline] = {}
    began_s = time.perf_counter()
    num_free = load.concurrency
    while num_free or not engine.is_idle:
        for request in islice(waiting, num_free):
            timelines[request.id] = _sent(request)
            engine.add(request)
        num_free = _step(engine, timelines)
    elapsed_s = time.perf_counter() - began_s
    share = acceptance(before, engine.stats())
    return measured(list(timelines.values()), load.concurrency, elapsed_s, share)


def _sent(request: Request) -> Timeline:
    return Timeline(time.perf_counter(), prompt_tokens=len(request.tokens))


def _step(engine: Engine, timelines: dict[int, Timeline]) -> int:
    """One pass; how many requests it finished."""
    deltas = engine.step()
    now_s = time.perf_counter()
    for delta in deltas:
        line = timelines.get(delta.request_id)
        if line is None:  # of an earlier call that nobody read to its end
            continue
        if delta.token is not None:
            line.arrivals_s.append(now_s)
            line.answer_tokens += 1
        line.error = delta.error
    return sum(d.finish_reason is not None and d.request_id in timelines for d in deltas)


def _requests(llm: LLM, load: Load) -> Sequence[Request]:
    params = SamplingParams(
        max_tokens=load.answer_tokens,
        temperature=load.temperature,
        seed=load.seed,
        ignore_eos=True,
    )
    draw = random.Random(load.seed)
    tokenizer = llm.tokenizer
    words = sorted(set(range(tokenizer.vocab_size)) - set(tokenizer.control_ids))
    prompts = [
        [tokenizer.bos_token_id, *draw.choices(words, k=load.prompt_tokens - 1)]
        for _ in range(load.requests)
    ]
    return llm.prompts.requests(prompts, params)
