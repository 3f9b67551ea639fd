"""A call's reply on the wire: server-sent events while it is written, or one JSON body.

While nothing can be said the connection shows that it lives: comment lines in a stream, and blank
lines before the body in DeepSeek's dialect. Status and headers go out with the first byte, so
whatever fails before is an error with its own status. Whoever leaves takes the call with them.
"""

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from abyssal.engine.request import Delta, Request
from abyssal.errors import AbyssalError
from abyssal.serve.bridge import Stream
from abyssal.serve.faults import Dialect, Fault, from_error, internal, invalid
from abyssal.serve.metrics import Stopwatch
from abyssal.serve.usage import Tally

_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_JSON = ((b"content-type", b"application/json"),)
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)


class Occasion(NamedTuple):
    """What a reply knows of the call it answers."""

    dialect: Dialect
    id: str
    fingerprint: str
    stopwatch: Stopwatch


class Reply(Protocol):
    """Deltas to JSON; chat_reply.py and completion_reply.py have one each."""

    tally: Tally

    def opening(self) -> Iterator[dict[str, Any]]:
        """The chunks before anything is written."""

    def chunks(self, deltas: Sequence[Delta]) -> Iterator[dict[str, Any]]:
        """The chunks these deltas make."""

    def closing(self) -> Iterator[dict[str, Any]]:
        """The chunks after everything."""

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The reply that is not streamed."""


class LiveResponse(Response):
    """Hands the requests of a call to the engine and writes what comes back."""

    def __init__(
        self,
        stream: Stream,
        requests: Sequence[Request],
        reply: Reply,
        *,
        streamed: bool,
        dialect: Dialect,
        keep_alive_s: float,
        stopwatch: Stopwatch,
    ):
        super().__init__()
        self._stream, self._requests, self._reply = stream, requests, reply
        self._streamed, self._dialect = streamed, dialect
        self._keep_alive_s = keep_alive_s
        self._stopwatch = stopwatch
        self._was_written = False  # whether the model has written anything

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the reply; the call ends with it, however it ends."""
        wire = _Wire(send, _EVENTS if self._streamed else _JSON, self._keep_alive_s)
        watcher = asyncio.create_task(self._watch(receive))
        try:
            self._stream.send(self._requests)
            await (self._write_events(wire) if self._streamed else self._write_body(wire))
        except (Fault, AbyssalError) as problem:
            if not wire.is_open:
                raise
            await self._write_problem(wire, problem)
        finally:
            watcher.cancel()
            self._stream.close()
            self._stopwatch.stop(len(self._requests))
            usage = self._reply.tally.to_dict()
            scope["state"]["tokens"] = {
                name: usage[name] for name in ("prompt_tokens", "completion_tokens")
            }

    async def _watch(self, receive: Receive) -> None:
        """Close the call when the client goes away."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stream.close()

    async def _write_events(self, wire: "_Wire") -> None:
        first = self._reply.opening()
        while not self._stream.is_over():
            deltas = await self._read(wire.patience_s())
            if self._stream.is_closed:
                return
            data = b""
            if deltas:
                data = _events(first) + _events(self._reply.chunks(deltas))
            if self._stream.is_over():
                data += _events(self._reply.closing()) + b"data: [DONE]\n\n"
                await wire.end(data)
            elif data:
                await wire.write(data)
            elif wire.patience_s() <= 0:
                await wire.write(b": keep-alive\n\n")

    async def _write_body(self, wire: "_Wire") -> None:
        deltas: list[Delta] = []
        shows_life = self._dialect == "deepseek"
        while not self._stream.is_over():
            deltas += await self._read(wire.patience_s() if shows_life else None)
            if self._stream.is_closed:
                return
            if shows_life and wire.patience_s() <= 0 and not self._stream.is_over():
                await wire.write(b"\n")
        await wire.end(_dumps(self._reply.whole(deltas)))

    async def _read(self, timeout_s: float | None) -> list[Delta]:
        """The next deltas.

        Raises:
            Fault: an answer failed, or the time was over before anything was written.
        """
        deltas = await self._stream.read(timeout_s)
        self._stopwatch.note(deltas)
        for delta in deltas:
            if delta.error is not None:
                raise internal() if delta.is_bug else invalid(delta.error, self._dialect)
            self._was_written |= delta.token is not None
        came_late = any(delta.finish_reason == "deadline" for delta in deltas)
        if came_late and not self._was_written and self._stream.is_over():
            raise _too_late()
        return deltas

    async def _write_problem(self, wire: "_Wire", problem: Fault | AbyssalError) -> None:
        """Say in a reply that has begun why it cannot go on."""
        fault = problem if isinstance(problem, Fault) else from_error(problem, self._dialect)
        data = _dumps(fault.to_body())
        await wire.end(b"data: " + data + b"\n\ndata: [DONE]\n\n" if self._streamed else data)


class _Wire:
    """Bytes of one reply; the first of them brings status and headers along."""

    def __init__(self, send: Send, headers: Iterable[tuple[bytes, bytes]], keep_alive_s: float):
        self._send = send
        self._headers = list(headers)
        self._keep_alive_s = keep_alive_s
        self._last_s = time.monotonic()
        self.is_open = False

    def patience_s(self) -> float:
        """How long nothing may be written yet."""
        return self._last_s + self._keep_alive_s - time.monotonic()

    async def write(self, data: bytes) -> None:
        """Send data, and go on."""
        await self._open()
        await self._body(data, more=True)

    async def end(self, data: bytes) -> None:
        """Send data as the last."""
        await self._open([(b"content-length", b"%d" % len(data))])
        await self._body(data, more=False)

    async def _open(self, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        if not self.is_open:
            self.is_open = True
            headers = [*self._headers, *more]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _body(self, data: bytes, *, more: bool) -> None:
        self._last_s = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _events(chunks: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + _dumps(chunk) + b"\n\n" for chunk in chunks)


def _dumps(value: object) -> bytes:
    """Compact JSON in ASCII: some clients break lines at U+2028 and its like."""
    return _ENCODER.encode(value).encode()


def _too_late() -> Fault:
    return Fault(
        503,
        "the time limit passed before the answer could begin; send the request again",
        type="server_error",
        code="timeout",
        headers={"retry-after": "5"},
    )
