"""How fast a server is, seen from outside: many streams at once, every piece of text timed.

The client speaks OpenAI's `/v1/completions`, so other servers can be measured with it too. Prompts
are random words; how many words make the wanted number of tokens is asked of the server. Told
to come again later (429), a request waits as long as it is told and tries again.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from abyssal.engine.latency import Figures, Load, Timeline, measured
from abyssal.engine.options import EngineOptions
from abyssal.errors import RequestError
from abyssal.serve.process import served

_TEXT = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work number night "
    "point home water room mother area money story fact month lot right study book eye job word "
    "business issue side kind head house service friend father power hour game line end member"
)
WORDS = _TEXT.split()
TRIAL = WORDS[::8]

ANSWER_S = 600.0  # without a sign of life
LONGEST_WAIT_S = 5.0  # before a refused request tries again, whatever it was told


class Target(NamedTuple):
    """A server to measure."""

    url: str  # without /v1
    model: str | None = None  # None: the first one it lists
    key: str | None = None


def measure(target: Target, loads: Iterable[Load]) -> list[Figures]:
    """The figures of each load, one after the other.

    Raises:
        RequestError: the server cannot be reached, or refuses the first request.
    """
    return asyncio.run(_measure(target, list(loads)))


async def run_load(client: httpx.AsyncClient, model: str, load: Load, words: int) -> Figures:
    """Send prompts of so many words until all requests of the load are served."""
    draw = random.Random(load.seed)
    prompts = [" ".join(draw.choices(WORDS, k=words)) for _ in range(load.requests)]
    waiting = iter(prompts)
    timelines: list[Timeline] = []

    async def reader() -> None:
        for prompt in waiting:  # shared: whoever is free takes the next one
            timelines.append(await _ask(client, _body(model, prompt, load)))

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as readers:
        for _ in range(min(load.concurrency, load.requests)):
            readers.create_task(reader())
    return measured(timelines, load.concurrency, time.perf_counter() - began_s)


@contextlib.contextmanager
def serving(folder: str | Path, options: EngineOptions | None = None) -> Iterator[str]:
    """The URL of a server of a model folder on this machine, gone again afterwards.

    Raises:
        ConfigError: it ended before it answered; the message has its own last words.
    """
    with served(folder, *_as_words(options or EngineOptions())) as server:
        yield server.url


async def _measure(target: Target, loads: Sequence[Load]) -> list[Figures]:
    most = max((load.concurrency for load in loads), default=1)
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    async with httpx.AsyncClient(
        base_url=target.url, headers=headers, limits=limits, timeout=ANSWER_S
    ) as client:
        model = target.model or await _first_model(client)
        words = await _word_count(client, model)
        return [await run_load(client, model, load, words(load.prompt_tokens)) for load in loads]


def _body(model: str, prompt: str, load: Load) -> dict[str, object]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": load.answer_tokens,
        "temperature": load.temperature,
        "seed": load.seed,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _ask(client: httpx.AsyncClient, body: dict[str, object]) -> Timeline:
    """One request from its first sending to its last piece."""
    line = Timeline(time.perf_counter())
    try:
        while (wait_s := await _try(client, body, line)) is not None:
            line.num_refused += 1
            await asyncio.sleep(wait_s)
    except (httpx.HTTPError, ValueError) as problem:  # a broken connection, a chunk that is no JSON
        line.error = f"{type(problem).__name__}: {problem}"
    return line


async def _try(client: httpx.AsyncClient, body: dict[str, object], line: Timeline) -> float | None:
    """Stream one answer into line; the seconds to wait if the server is full."""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            await response.aread()
            return _retry_after_s(response)
        if response.is_error:
            await response.aread()
            line.error = f"status {response.status_code}: {response.text[:200]}"
            return None
        async for chunk in _events(response):
            _note(chunk, line)
    line.answer_tokens = line.answer_tokens or len(line.arrivals_s)  # a server without usage
    return None


def _note(chunk: dict[str, Any], line: Timeline) -> None:
    """Add one chunk of a stream."""
    if any(choice.get("text") for choice in chunk.get("choices", ())):
        line.arrivals_s.append(time.perf_counter())
    if usage := chunk.get("usage"):
        line.prompt_tokens = usage["prompt_tokens"]
        line.answer_tokens = usage["completion_tokens"]
    if error := chunk.get("error"):
        line.error = str(error.get("message", error))


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of a stream of server-sent events; comments keep it alive and say nothing."""
    async for text in response.aiter_lines():
        if text.startswith("data:") and (data := text[5:].strip()) != "[DONE]":
            yield json.loads(data)


def _retry_after_s(response: httpx.Response) -> float:
    told: str = response.headers.get("Retry-After", "1")
    return min(float(told) if told.isdecimal() else 1.0, LONGEST_WAIT_S)


async def _first_model(client: httpx.AsyncClient) -> str:
    found = await _checked(client.get("/v1/models"), client)
    return str(found["data"][0]["id"])


async def _word_count(client: httpx.AsyncClient, model: str) -> Callable[[int], int]:
    """How many words make a prompt of so many tokens; asking also warms the server up."""
    one, few = [await _prompt_tokens(client, model, words) for words in (TRIAL[:1], TRIAL)]
    each = max((few - one) / (len(TRIAL) - 1), 1.0)
    return lambda tokens: max(round((tokens - one) / each) + 1, 1)


async def _prompt_tokens(client: httpx.AsyncClient, model: str, words: Sequence[str]) -> int:
    """The tokens of a prompt by the usage of its answer; one a word if the server tells none."""
    body = {"model": model, "prompt": " ".join(words), "max_tokens": 1}
    found = await _checked(client.post("/v1/completions", json=body), client)
    tokens: int = found.get("usage", {}).get("prompt_tokens", len(words))
    return tokens


async def _checked(asked: Awaitable[httpx.Response], client: httpx.AsyncClient) -> dict[str, Any]:
    try:
        response = await asked
    except httpx.HTTPError as problem:
        raise RequestError(
            f"{client.base_url} cannot be reached ({type(problem).__name__}: {problem}); "
            "start the server, or correct its address"
        ) from None
    if response.is_error:
        raise RequestError(
            f"{client.base_url} answered {response.status_code}: {response.text[:200]!r}; "
            "see its log, its model names and its keys"
        )
    found: dict[str, Any] = response.json()
    return found


def _as_words(options: EngineOptions) -> list[str]:
    """Engine options as those of `abyssal serve`."""
    words = ["--max-running", str(options.max_running), "--draft", str(options.draft)]
    if options.cache_bytes is not None:
        words += ["--cache", str(options.cache_bytes)]
    if options.cache_dtype is not None:
        words += ["--cache-dtype", options.cache_dtype]
    if options.max_waiting is not None:
        words += ["--max-waiting", str(options.max_waiting)]
    return [*words, "--log-level", "warning", *["--deterministic"] * options.deterministic]
