"""The verb that measures speed: of the engine alone, or of a server from outside."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.cli.options import (
    CacheMemory,
    CacheType,
    Deterministic,
    Draft,
    Folder,
    MaxRunning,
    amount_of_bytes,
    check_folder,
    open_llm,
)
from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal.engine.latency import Figures, Load
    from abyssal.engine.options import EngineOptions

Measured = Annotated[
    Literal["engine", "serve"], typer.Argument(help="The engine alone, or a server over HTTP.")
]
Url = Annotated[
    str | None, typer.Option(help="A server that runs already, any with /v1/completions.")
]
Model = Annotated[str | None, typer.Option(help="Its model; without one, the first it lists.")]
KeyVariable = Annotated[
    str | None, typer.Option(help="Environment variable that holds its API key.", metavar="NAME")
]
Concurrency = Annotated[
    list[int] | None,
    typer.Option(help="Requests under way; may be repeated; 1, 8 and 32 if left out.", metavar="N"),
]
PromptTokens = Annotated[int, typer.Option(help="Tokens of each prompt.", metavar="N")]
AnswerTokens = Annotated[int, typer.Option(help="Tokens of each answer.", metavar="N")]
Requests = Annotated[
    int, typer.Option(help="Requests of each level; 0: twice as many as at once.", metavar="N")
]
Temperature = Annotated[float, typer.Option(help="0: always the most likely token.", metavar="T")]


def bench(
    what: Measured,
    folder: Folder = DEMO,
    url: Url = None,
    model: Model = None,
    key_variable: KeyVariable = None,
    concurrency: Concurrency = None,
    prompt_tokens: PromptTokens = 128,
    answer_tokens: AnswerTokens = 128,
    requests: Requests = 0,
    temperature: Temperature = 1.0,
    max_running: MaxRunning = 64,
    cache: CacheMemory = None,
    cache_dtype: CacheType = None,
    draft: Draft = 0,
    deterministic: Deterministic = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Measure throughput, time to the first token and time between tokens.

    Prompts are random and share nothing; answers have their full length.
    With `serve`, a server of the folder is started for the measurement,
    unless --url names one that runs already.
    """
    from abyssal.engine.latency import Load
    from abyssal.engine.options import EngineOptions

    loads = [
        Load(
            concurrency=level,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            requests=requests,
            temperature=temperature,
        )
        for level in concurrency or (1, 8, 32)
    ]
    options = EngineOptions(
        max_running=max_running,
        cache_bytes=amount_of_bytes(cache),
        cache_dtype=cache_dtype,
        draft=draft,
        deterministic=deterministic,
    )
    if what == "engine":
        if url is not None:
            raise RequestError("--url names a server; measure it with `abyssal bench serve`")
        levels = _engine_levels(folder, options, loads)
    else:
        levels = _server_levels(folder, options, loads, url, model, key_variable)
    if json:
        console.show_json({"measured": what, "of": url or folder, "levels": levels})
    else:
        _show_levels(f"{what} of {url or folder}", levels)


def _engine_levels(
    folder: str, options: "EngineOptions", loads: "Sequence[Load]"
) -> "list[Figures]":
    check_folder(folder)
    from abyssal.engine.bench import measure

    return list(measure(open_llm(folder, options), loads))


def _server_levels(
    folder: str,
    options: "EngineOptions",
    loads: "Sequence[Load]",
    url: str | None,
    model: str | None,
    key_variable: str | None,
) -> "list[Figures]":
    from abyssal.serve.bench import Target, measure, serving

    key = None
    if key_variable is not None:
        key = os.environ.get(key_variable)
        if not key:
            raise RequestError(f"{key_variable} is not set; export an API key under that name")
    if url is not None:
        return measure(Target(url.removesuffix("/").removesuffix("/v1"), model, key), loads)
    check_folder(folder)
    with serving(folder, options) as own_url:
        return measure(Target(own_url), loads)


def _show_levels(title: str, levels: "Sequence[Figures]") -> None:
    """A row for each level of concurrency, and what went wrong below."""
    rows = [
        (
            f"{level.concurrency} at once",
            console.number(level.requests),
            *(console.written(name, getattr(level, name)) for name in _LEVEL_FIGURES.values()),
        )
        for level in levels
    ]
    console.table(title, ("", "requests", *_LEVEL_FIGURES), rows)
    for level in levels:
        if level.failed or level.refused:
            why = f"; the first: {level.first_error}" if level.first_error else ""
            console.note(
                f"{level.concurrency} at once: {level.failed} failed{why}, "
                f"{level.refused} times told to come later"
            )
        if level.draft_acceptance is not None:
            shares = ", ".join(f"{share:.0%}" for share in level.draft_acceptance)
            console.note(f"{level.concurrency} at once: of the drafted tokens {shares} were right")


_LEVEL_FIGURES = {
    "tokens/s": "tokens_per_s",
    "first token": "first_token_median_ms",
    "99 %": "first_token_p99_ms",
    "between tokens": "between_tokens_median_ms",
    "99 % ": "between_tokens_p99_ms",
}


VERBS = (
    Verb(
        bench,
        (
            "abyssal bench engine",
            "abyssal bench engine out/demo/model --concurrency 1 --concurrency 32 --draft 1",
            "abyssal bench serve --prompt-tokens 64 --answer-tokens 32 --json",
            "abyssal bench serve --url http://127.0.0.1:8000 --concurrency 16",
        ),
    ),
)
