"""The thread that owns the engine: commands of the event loop in, one step, the news of it out.

Between two steps the thread carries out what the loop has posted; while there is neither a command
nor an answer under way it sleeps. Whatever goes wrong inside a step or a command ends the calls
concerned and never the thread.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from abyssal.engine.engine import Stats
from abyssal.engine.request import Delta, Request
from abyssal.errors import AbyssalError
from abyssal.serve.faults import Fault, internal, shutting_down

logger = logging.getLogger(__name__)


class Steps(Protocol):
    """What the thread asks of an engine; engine/engine.py has the one."""

    def add(self, request: Request) -> None:
        """Put a request into the queue."""

    def abort(self, request_id: int) -> None:
        """Forget a request."""

    def step(self) -> list[Delta]:
        """One pass over everyone."""

    def stats(self) -> Stats:
        """Where things stand."""


@dataclass(slots=True)
class News:
    """What a call learns of one round of the thread."""

    deltas: list[Delta] = field(default_factory=list)
    num_ended: int = 0  # answers that are over
    failure: Exception | None = None


class Call(Protocol):
    """Whoever has requests in the engine; bridge.py's Stream is one."""

    def tell(self, news: News) -> None:
        """Take in what the thread found out; called on the event loop."""


Round = dict[Call, News]  # the news of one round, by call


class EngineThread:
    """One engine and its thread; every method may be called from the event loop and returns at
    once."""

    def __init__(self, engine: Steps):
        self.is_broken = False  # the engine cannot even forget: nothing more can be served
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="engine")
        self._wake = threading.Condition()
        self._inbox: list[Callable[[Round], None]] = []  # guarded by _wake
        self._is_closing = False  # guarded by _wake
        self._calls: dict[int, Call] = {}  # by request id; this and all below: the thread's alone
        self._alive: dict[Call, set[int]] = {}  # request ids, by call
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin; news goes to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Carry out what has been posted, end every answer, and end the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()

    def join(self) -> None:
        """Wait for the end; blocks."""
        self._thread.join()

    def add(self, call: Call, requests: Sequence[Request]) -> None:
        """Give the requests of a call to the engine, all or none."""
        self._post(partial(self._add, call, requests))

    def abort(self, call: Call) -> None:
        """Take what is left of a call away from the engine, before its next step."""
        with suppress(Fault):  # a thread at its end has ended every call
            self._post(partial(self._abort, call))

    def end_all(self) -> None:
        """Every answer ends here, as if its deadline had come."""
        self._post(self._end_all)

    def stats(self) -> "Future[Stats]":
        """The engine's own account, between two steps."""
        found: Future[Stats] = Future()
        self._post(partial(self._tell_stats, found))
        return found

    def _post(self, command: Callable[[Round], None]) -> None:
        with self._wake:
            if self._is_closing:
                raise shutting_down()
            self._inbox.append(command)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._inbox or self._calls or self._is_closing)
                inbox, self._inbox = self._inbox, []
                is_last = self._is_closing
            news: Round = {}
            for command in inbox:
                command(news)
            if is_last:
                self._end_all(news)
            elif self._calls:
                self._step(news)
            if news and not self._tell(news):
                return
            if is_last:
                return

    def _tell(self, news: Round) -> bool:
        """Hand the news to the event loop; False if it has ended, and with it every reader."""
        assert self._loop is not None, "the thread runs only once it is started"
        try:
            self._loop.call_soon_threadsafe(_deliver, news)
        except RuntimeError:
            return False
        return True

    def _step(self, news: Round) -> None:
        try:
            deltas = self._engine.step()
        except Exception:  # whatever it is, the thread must live on
            logger.exception("a step of the engine failed; %d answers end", len(self._calls))
            for call in list(self._alive):
                self._drop(call, news, internal())
            return
        for delta in deltas:
            if delta.request_id in self._calls:
                told = news.setdefault(self._calls[delta.request_id], News())
                told.deltas.append(delta)
                if delta.finish_reason is not None:
                    told.num_ended += 1
                    self._forget(delta.request_id)

    def _add(self, call: Call, requests: Sequence[Request], news: Round) -> None:
        problem: Exception
        try:
            for request in requests:
                self._engine.add(request)
                self._calls[request.id] = call
                self._alive.setdefault(call, set()).add(request.id)
            return
        except AbyssalError as refusal:
            problem = refusal
        except Exception:  # a request that breaks the engine's door ends alone
            logger.exception("a request could not be added")
            problem = internal()
        self._drop(call, news, problem)
        news.setdefault(call, News()).num_ended = len(requests)

    def _abort(self, call: Call, news: Round) -> None:
        self._drop(call, news)

    def _end_all(self, news: Round) -> None:
        for request_id, call in list(self._calls.items()):
            end = Delta(request_id, None, finish_reason="deadline")
            news.setdefault(call, News()).deltas.append(end)
        for call in list(self._alive):
            self._drop(call, news)

    def _drop(self, call: Call, news: Round, failure: Exception | None = None) -> None:
        """Take a call out of the engine; all its answers are over."""
        told = news.setdefault(call, News())
        told.failure = failure
        for request_id in list(self._alive.get(call, ())):
            self._forget(request_id)
            told.num_ended += 1
            try:
                self._engine.abort(request_id)
            except Exception:  # nothing is left to try
                logger.exception("the engine cannot forget a request; it is given up")
                self.is_broken = True

    def _forget(self, request_id: int) -> None:
        call = self._calls.pop(request_id)
        alive = self._alive[call]
        alive.remove(request_id)
        if not alive:
            del self._alive[call]

    def _tell_stats(self, found: "Future[Stats]", news: Round) -> None:
        try:
            found.set_result(self._engine.stats())
        except Exception as problem:  # noqa: BLE001 - told to whoever asked
            found.set_exception(problem)


def _deliver(news: Round) -> None:
    for call, told in news.items():
        call.tell(told)
