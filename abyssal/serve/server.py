"""The process that serves: uvicorn around the application, and an end that lets answers finish.

SIGTERM or SIGINT: nobody new is let in, answers under way get drain_s, what is left then ends as at
its deadline, and the process goes. A second signal ends it at once.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.errors import ConfigError
from abyssal.serve.app import create_app
from abyssal.serve.log import log_to
from abyssal.serve.settings import Settings
from abyssal.serve.store import Store

# A thread that computes in Python gives way to the event loop after this long. With the usual 5 ms
# one message in a hundred came 95 ms after the one before it, with this 65 (64 streams of a toy
# model on two busy cores, a run or two each).
SWITCH_S = 0.0005

_LAST_WORDS_S = 5.0  # for replies to be written after the drain


def run(
    folder: str | Path,
    settings: Settings,
    options: EngineOptions | None = None,
    *,
    ready: Callable[[str], None] | None = None,
    log_level: str = "info",
) -> int:
    """Serve the model in a folder until a signal comes, and return its number.

    options.max_waiting bounds the answers that wait behind the running ones. `ready` is told the
    address once it is listened on.

    Raises:
        ConfigError: the address cannot be had, or the file of the history.
        CheckpointError, DataError: the folder lacks a model or a tokenizer.
    """
    log_to(level=logging.getLevelNamesMapping()[log_level.upper()])
    options = options or EngineOptions()
    with _bound(settings) as listener, _opened(settings) as history:
        # The bridge bounds the queue: it knows before any work is done, and the engine would count
        # a burst as waiting that it can run at once.
        llm = LLM(folder, options=replace(options, max_waiting=None))
        app = create_app(llm, settings, options.max_waiting, history)
        sys.setswitchinterval(SWITCH_S)
        server = Server(app, settings, (lambda: ready(_url(settings, listener))) if ready else None)
        server.run([listener])
    if not server.started:
        raise ConfigError("the service could not start; the log has the reason")
    return server.signal or signal.SIGTERM


class Server(uvicorn.Server):
    """uvicorn with an end in two steps."""

    def __init__(self, app: FastAPI, settings: Settings, ready: Callable[[], None] | None = None):
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=int(settings.drain_s + _LAST_WORDS_S) + 1,
            )
        )
        self.signal: int | None = None
        self._bridge = app.state.service.bridge
        self._drain_s = settings.drain_s
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started and self._ready:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers finish, for a while, and end."""
        drain = asyncio.create_task(self._bridge.drain(self._drain_s))
        await super().shutdown(sockets)
        drain.cancel()
        self._bridge.thread.stop()  # a forced end has left it running, and it is no daemon

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second signal, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.signal = sig


def _bound(settings: Settings) -> socket.socket:
    """A socket that has the address of the settings; nobody can connect until it listens."""
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as problem:
        if listener is not None:
            listener.close()
        raise ConfigError(
            f"host={settings.host} port={settings.port}: cannot listen there "
            f"({problem.strerror or problem}); choose another port, or 0 for any free one"
        ) from problem
    return listener


def _opened(settings: Settings) -> AbstractContextManager[Store | None]:
    """The store of the history, if one is to be kept; opened before the model is read."""
    return nullcontext() if settings.history is None else Store(settings.history)


def _url(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"
