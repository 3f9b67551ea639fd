"""The verb that serves: a model folder over HTTP."""

import os
import webbrowser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.cli.options import (
    CacheMemory,
    CacheType,
    ChatLayout,
    Deterministic,
    Draft,
    Folder,
    MaxRunning,
    amount_of_bytes,
    check_folder,
    layout_for,
)
from abyssal.errors import ConfigError

if TYPE_CHECKING:
    from abyssal.serve.settings import Settings

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", metavar="N")]
Name = Annotated[
    str | None, typer.Option(help="Model name for clients; without one, the folder's.")
]
KeyFile = Annotated[
    Path | None, typer.Option(help="API keys, one a line; ABYSSAL_API_KEYS may hold some too.")
]
MaxWaiting = Annotated[
    int, typer.Option(help="Requests in the queue; more are told to come later.", metavar="N")
]
Cors = Annotated[
    list[str] | None,
    typer.Option(help="Web page that may call, https://chat.example; may be repeated."),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(help="Name that clients call this machine by; may be repeated."),
]
TimeoutS = Annotated[
    float, typer.Option(help="Longest a request may take, in seconds.", metavar="S")
]
DrainS = Annotated[
    float, typer.Option(help="Seconds that answers get to finish when stopped.", metavar="S")
]
History = Annotated[
    Path | None,
    typer.Option(
        help="Keep chats in this file; else history.sqlite3 among your data.", metavar="FILE"
    ),
]
NoHistory = Annotated[bool, typer.Option("--no-history", help="Keep no chats.")]
MapTemperature = Annotated[
    bool, typer.Option("--map-temperature", help="1.0 means 0.3, as in DeepSeek's service.")
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option(help="The least that is logged.")
]
Open = Annotated[bool, typer.Option("--open", help="Show the chat page in a browser.")]
Json = Annotated[bool, typer.Option("--json", help="Where it listens, as one JSON object.")]


def serve(
    folder: Folder = DEMO,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    layout: ChatLayout = None,
    key_file: KeyFile = None,
    max_running: MaxRunning = 64,
    max_waiting: MaxWaiting = 256,
    cache: CacheMemory = None,
    cache_dtype: CacheType = None,
    draft: Draft = 0,
    deterministic: Deterministic = False,
    cors: Cors = None,
    allow_host: AllowHost = None,
    timeout_s: TimeoutS = 1800.0,
    drain_s: DrainS = 30.0,
    history: History = None,
    no_history: NoHistory = False,
    map_temperature: MapTemperature = False,
    log_level: LogLevel = "info",
    open: Open = False,
    json: Json = False,
) -> None:
    """Answer over HTTP, as OpenAI's and DeepSeek's services do, and show a chat page.

    Only this machine can reach it, unless --host names another address and
    there are API keys. SIGTERM and Ctrl-C let answers under way finish.
    """
    check_folder(folder)
    from abyssal.engine.options import EngineOptions
    from abyssal.serve.server import run
    from abyssal.serve.settings import Settings, read_keys

    settings = Settings(
        name=name or Path(folder).resolve().name,
        layout=layout_for(folder, layout),
        host=host,
        port=port,
        api_keys=read_keys(key_file, os.environ),
        allowed_hosts=tuple(allow_host or ()),
        cors_origins=tuple(cors or ()),
        request_timeout_s=timeout_s,
        drain_s=drain_s,
        history=_history(history, no_history),
        map_temperature=map_temperature,
    )
    options = EngineOptions(
        max_running=max_running,
        max_waiting=max_waiting,
        cache_bytes=amount_of_bytes(cache),
        cache_dtype=cache_dtype,
        draft=draft,
        deterministic=deterministic,
    )
    ready = partial(_say_where, settings, open, json)
    raise typer.Exit(128 + run(folder, settings, options, ready=ready, log_level=log_level))


def _history(file: Path | None, none: bool) -> Path | None:
    """Where chats are kept, if they are."""
    from abyssal.serve.store_schema import default_path

    if file and none:
        raise ConfigError(f"--history {file} and --no-history: give one of them")
    return None if none else file or default_path(os.environ)


def _say_where(settings: "Settings", show: bool, as_json: bool, url: str) -> None:
    """Where it listens, and a first request to try; with `show`, a browser opens there."""
    if show and not webbrowser.open(url):
        console.note(f"no browser was found; open {url} in one")
    if as_json:
        where = {"url": url, "model": settings.name, "docs": f"{url}/docs"}
        console.show_json({**where, "history": settings.history and str(settings.history)})
        return
    console.say(f"{settings.name} listens on {url} (a chat page; descriptions at {url}/docs); try")
    key = ' -H "Authorization: Bearer $KEY"' if settings.api_keys else ""
    body = f'{{"model": "{settings.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    console.say(
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )
    if settings.history:
        console.say(f"chats are kept in {settings.history} (--no-history keeps none)")


VERBS = (
    Verb(
        serve,
        (
            "abyssal serve --open",
            "abyssal serve out/demo/model --port 9000 --draft 1 --cache 2GiB",
            "abyssal serve --host 0.0.0.0 --key-file keys.txt --allow-host models.example",
        ),
    ),
)
