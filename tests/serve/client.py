"""A service that runs inside a test's event loop, and ways to ask it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from abyssal.engine.llm import LLM
from abyssal.serve.app import create_app
from abyssal.serve.service import Service
from abyssal.serve.settings import Settings
from abyssal.serve.store import Store
from abyssal.tokenizer.control import CLOSING, USER

VOCAB_SIZE = 320  # of the tokenizer in conftest.py

# A random model ends its answers by chance; with these it does not.
ENDLESS = {
    "ignore_eos": True,
    "logit_bias": {str(VOCAB_SIZE - len(CLOSING) + CLOSING.index(USER)): -100},
}


class Client:
    """Asks a service that runs in this event loop, without a network between."""

    def __init__(self, app: FastAPI, http: httpx.AsyncClient):
        self.app, self.http = app, http
        self.service: Service = app.state.service

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """The reply to a body, which names the model if it says nothing else."""
        return await self.http.post(path, json={"model": "tiny", **body})

    async def whole(self, path: str, **body: Any) -> dict[str, Any]:
        """The JSON of a reply that must have gone well."""
        reply = await self.post(path, **body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def chunks(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream that must have gone well."""
        reply = await self.post(path, stream=True, **body)
        assert reply.status_code == 200, reply.text
        return events(reply.text)

    async def settled(self) -> bool:
        """Whether, in a moment, nobody runs, waits or holds a page."""
        for _ in range(200):
            stats = await self.service.bridge.stats()
            held = stats.requests_running, stats.requests_waiting, stats.pages_in_use
            if held == (0, 0, 0) and self.service.bridge.num_in_flight == 0:
                return True
            await asyncio.sleep(0.01)
        return False


class Visit:
    """One request, message by message, as a web server brings it; the client may leave early."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any] | None):
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if body is not None:
            data = json.dumps({"model": "tiny", **body}).encode()
            self._received.put_nowait({"type": "http.request", "body": data})
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            "root_path": "",
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._received.get, self._sent.put))
        self.status = 0
        self.headers: dict[str, str] = {}

    async def read(self, timeout_s: float = 10.0) -> bytes:
        """The next bytes; none at the end."""
        async with asyncio.timeout(timeout_s):
            message = await self._sent.get()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            return await self.read(timeout_s)
        return message["body"]

    def leave(self) -> None:
        """The client hangs up."""
        self._received.put_nowait({"type": "http.disconnect"})


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of server-sent events, of which the last must be [DONE]."""
    data = [part.removeprefix("data: ") for part in text.split("\n\n") if part.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def settings(**changes: Any) -> Settings:
    return Settings(**{"name": "tiny", "layout": "v3.1", **changes})


@asynccontextmanager
async def serving(
    llm: LLM, max_waiting: int | None = None, history: Store | None = None, **changes: Any
) -> AsyncIterator[Client]:
    """A service from its startup to its shutdown; `changes` are of its settings."""
    app = create_app(llm, settings(**changes), max_waiting, history)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            yield Client(app, http)
