"""The bridge between many calls on the event loop and the one engine on its thread.

    open -> send -> read, read, ... -> close

How many answers may be under way is bounded, and a call beyond the bound is refused before any work
is done for it. A call that is closed early is out of the engine before its next step.
"""

import asyncio
from collections.abc import Sequence

from abyssal.engine.engine import Stats
from abyssal.engine.request import Delta, Request
from abyssal.errors import OverloadedError, RequestError
from abyssal.serve.closing import Closing
from abyssal.serve.engine_thread import EngineThread, News, Steps
from abyssal.serve.faults import internal, shutting_down


class Bridge:
    """Calls in, deltas out; all of it on the event loop that starts it."""

    def __init__(self, engine: Steps, *, max_in_flight: int):
        self.max_in_flight = max_in_flight  # answers running or waiting
        self.num_in_flight = 0
        self.is_draining = False
        self.thread = EngineThread(engine)
        self._empty = asyncio.Event()
        self._empty.set()

    def start(self) -> None:
        """Start the engine's thread."""
        self.thread.start()

    @property
    def is_healthy(self) -> bool:
        """Whether new calls can be served."""
        return not (self.is_draining or self.thread.is_broken)

    def open(self) -> "Stream":
        """A place for one answer.

        Raises:
            OverloadedError: all places are taken.
            Fault: the service is coming to its end, or the engine is broken.
        """
        if self.thread.is_broken:
            raise internal()
        if self.is_draining:
            raise shutting_down()
        return Stream(self)

    async def stats(self) -> Stats:
        """The engine's own account, taken between two steps."""
        return await asyncio.wrap_future(self.thread.stats())

    async def drain(self, timeout_s: float) -> bool:
        """Take nobody new and wait; after timeout_s end what is left. Whether all ended alone."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            self.thread.end_all()
            return False
        return True

    async def stop(self) -> None:
        """End whatever is left, and the thread."""
        self.is_draining = True
        self.thread.stop()
        await asyncio.to_thread(self.thread.join)

    def take(self, count: int) -> None:
        """Take places for so many answers, if there are that many."""
        if self.num_in_flight + count > self.max_in_flight:
            raise OverloadedError(
                f"{self.num_in_flight} answers are under way and {self.max_in_flight} is the most "
                "this service takes on; ask again in a moment"
            )
        self.num_in_flight += count
        self._empty.clear()

    def give_back(self, count: int) -> None:
        """Free the places of answers that are over."""
        self.num_in_flight -= count
        if self.num_in_flight == 0:
            self._empty.set()


class Stream(Closing):
    """What the requests of one call write, as it is written.

    Used as a context manager: leaving it takes unfinished requests out of the engine.
    """

    def __init__(self, bridge: Bridge):
        bridge.take(1)
        self.is_closed = False
        self._bridge = bridge
        self._num_places = 1  # taken and not given back
        self._was_sent = False
        self._num_left = 0  # answers whose end has not come
        self._ready: list[Delta] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def is_over(self) -> bool:
        """Whether nothing more can be read."""
        return self.is_closed or (self._num_left == 0 and not self._ready and not self._failure)

    def send(self, requests: Sequence[Request]) -> None:
        """Hand the requests of this call to the engine, all or none; once.

        Raises:
            OverloadedError: there is no place for all of them.
            RequestError: there never will be.
        """
        most = self._bridge.max_in_flight
        if len(requests) > most:
            raise RequestError(
                f"the request asks for {len(requests)} answers, but this service writes at most "
                f"{most} at once; send several requests"
            )
        self._bridge.take(len(requests) - 1)
        self._was_sent = True
        self._num_places = self._num_left = len(requests)
        self._bridge.thread.add(self, requests)

    async def read(self, timeout_s: float | None = None) -> list[Delta]:
        """What was written since the last read; nothing after timeout_s, and at the end.

        Raises:
            OverloadedError, RequestError: the engine did not take the requests.
            Fault: the engine failed.
        """
        if not self._ready and not self._failure and not self.is_over():
            await self._news(timeout_s)
        if self._failure is not None and not self.is_closed:
            raise self._failure
        deltas, self._ready = self._ready, []
        return deltas

    def close(self) -> None:
        """End the call: requests still in the engine are aborted. Does no harm twice."""
        if self.is_closed:
            return
        self.is_closed = True
        if not self._was_sent:
            self._give_back(self._num_places)
        elif self._num_places:
            self._bridge.thread.abort(self)
        self._ready = []
        self._awake()

    def tell(self, news: News) -> None:
        """Take in what the thread found out."""
        self._give_back(news.num_ended)
        self._num_left -= news.num_ended
        if not self.is_closed:
            self._ready += news.deltas
            self._failure = self._failure or news.failure
        self._awake()

    async def _news(self, timeout_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._awake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _awake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give_back(self, count: int) -> None:
        self._num_places -= count
        self._bridge.give_back(count)
