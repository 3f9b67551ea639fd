"""One model being served: what every route works with, and the way of a call from body to reply.

    place taken -> body read and checked -> tokens, values, grammar (on a worker) -> reply

A call that finds no place is refused before its body is read.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from abyssal.engine.llm import LLM
from abyssal.engine.request import Request
from abyssal.serve import chat, completion
from abyssal.serve.body import read_json
from abyssal.serve.bridge import Bridge
from abyssal.serve.chat_reply import ChatReply
from abyssal.serve.completion_reply import CompletionReply
from abyssal.serve.faults import Dialect, dialect_of, not_found_model
from abyssal.serve.fields import Body
from abyssal.serve.metrics import Metrics, Stopwatch
from abyssal.serve.model_card import ModelCard
from abyssal.serve.sampling import Prepared
from abyssal.serve.schema import ChatRequest, CompletionRequest, Sampling, parse
from abyssal.serve.settings import Settings
from abyssal.serve.store import Store
from abyssal.serve.stream import LiveResponse, Occasion, Reply
from abyssal.serve.thinking import aliases
from abyssal.serve.ticket import Tickets

B = TypeVar("B", bound=Body)
S = TypeVar("S", bound=Sampling)
T = TypeVar("T")

WAITING_PER_RUNNING = 4  # answers that may wait for each that may run, where nobody says

# Threads for tokens, and others for grammars: compiling is bounded but can take its whole time, and
# must not keep plain requests waiting.
_NUM_WORKERS = 4


class Service:
    """A model, its bridge, its numbers and its workers."""

    def __init__(
        self,
        llm: LLM,
        settings: Settings,
        max_waiting: int | None = None,
        history: Store | None = None,
    ):
        self.llm, self.settings, self.history = llm, settings, history
        running = llm.engine.options.max_running
        waiting = running * WAITING_PER_RUNNING if max_waiting is None else max_waiting
        self.bridge = Bridge(llm.engine, max_in_flight=running + waiting)
        self.metrics = Metrics(settings.name)
        self.card = ModelCard(llm, settings)
        self.tickets = Tickets()
        self.created = int(time.time())
        self.fingerprint = _fingerprint(llm)
        self.models = tuple(dict.fromkeys((settings.name, *aliases(settings.layout))))
        self._texts = ThreadPoolExecutor(_NUM_WORKERS, "texts")
        self._grammars = ThreadPoolExecutor(_NUM_WORKERS, "grammars")

    async def stop(self) -> None:
        """End the engine's thread and the workers."""
        await self.bridge.stop()
        self._texts.shutdown(wait=False, cancel_futures=True)
        self._grammars.shutdown(wait=False, cancel_futures=True)

    async def chat(self, request: HttpRequest) -> Response:
        """The reply to a chat request.

        Raises:
            Fault, AbyssalError: it cannot be served.
        """
        return await self._call(request, ChatRequest, chat.prepare, ChatReply)

    async def complete(self, request: HttpRequest) -> Response:
        """The reply to a text completion; raises as `chat` does."""
        return await self._call(request, CompletionRequest, completion.prepare, CompletionReply)

    async def read(self, request: HttpRequest, schema: type[B]) -> B:
        """The body of a request, as it should be.

        Raises:
            Fault: it is not.
        """
        body = await read_json(request.scope, request.receive, self.settings)
        return parse(schema, body, dialect_of(request.url.path), self.settings)

    def check_model(self, name: str | None, dialect: Dialect) -> None:
        """Raise a Fault unless this service has the model; None is whichever it has."""
        if name is not None and name not in self.models:
            raise not_found_model(name, dialect, self.settings.name)

    async def beside(self, work: Callable[[], T], *, may_compile: bool = False) -> T:
        """What work returns, done on a worker so that streams go on meanwhile."""
        pool = self._grammars if may_compile else self._texts
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def _call(
        self,
        request: HttpRequest,
        schema: type[S],
        prepare: Callable[[S, LLM, Settings, Dialect], Prepared],
        kind: Callable[..., Reply],
    ) -> Response:
        stopwatch = Stopwatch(self.metrics)
        deadline_s = time.monotonic() + self.settings.request_timeout_s
        dialect = dialect_of(request.url.path)
        stream = self.bridge.open()
        try:
            body = await self.read(request, schema)
            self.check_model(body.model, dialect)

            def work() -> list[Request]:
                prepared = prepare(body, self.llm, self.settings, dialect)
                return self._requests(request, prepared, deadline_s)

            requests = await self.beside(work, may_compile=_may_compile(body))
        except BaseException:
            stream.close()
            raise
        request_id = request.state.request_id
        occasion = Occasion(dialect, request_id, self.fingerprint, stopwatch)
        reply = kind(body, requests, self.llm, occasion)
        return LiveResponse(
            stream,
            requests,
            reply,
            streamed=bool(body.stream),
            dialect=dialect,
            keep_alive_s=self.settings.keep_alive_s,
            stopwatch=stopwatch,
        )

    def _requests(
        self, request: HttpRequest, prepared: Prepared, deadline_s: float
    ) -> list[Request]:
        return self.llm.prompts.requests(
            prepared.prompts,
            prepared.params,
            thinking=prepared.thinking,
            layout=prepared.layout,
            owner=request.state.owner,
            salt=request.state.salt,
            deadline_s=deadline_s,
        )


def _may_compile(body: Sampling) -> bool:
    return isinstance(body, ChatRequest) and bool(body.tools or body.response_format)


def _fingerprint(llm: LLM) -> str:
    """One word for what decides an answer beside the request: the model's shape and vocabulary."""
    told = f"{llm.config} {llm.tokenizer.sha256}"
    return "fp_" + hashlib.sha256(told.encode()).hexdigest()[:12]
