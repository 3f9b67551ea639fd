"""One engine for many threads: whoever waits for an answer drives a pass for everybody."""

import threading
from collections import deque
from collections.abc import Iterator

from abyssal.engine.engine import Engine
from abyssal.engine.request import Delta, Request


class SharedEngine:
    """An engine whose requests come from several threads, and who gets which delta."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.lock = threading.Lock()  # whoever holds it drives the engine
        self._boxes: dict[int, deque[Delta]] = {}  # by request: where its call collects deltas
        self._given_up: deque[int] = deque()  # requests nobody reads any more

    def deltas(self, requests: list[Request]) -> Iterator[Delta]:
        """Run requests to their ends; who stops reading early gives them up."""
        box: deque[Delta] = deque()
        going = {request.id for request in requests}
        try:
            with self.lock:
                for request in requests:
                    self._boxes[request.id] = box
                    self.engine.add(request)
            while going:
                with self.lock:
                    while not box:  # another thread may have filled it meanwhile
                        self._drive()
                while box:
                    delta = box.popleft()
                    if delta.finish_reason:
                        going.discard(delta.request_id)
                        del self._boxes[delta.request_id]
                    yield delta
        finally:
            # Perhaps the garbage collector is closing us in the middle of somebody's pass.
            self._given_up.extend(going)

    def _drive(self) -> None:
        """One pass for everybody, each delta into its call's box."""
        while self._given_up:
            request_id = self._given_up.popleft()
            self.engine.abort(request_id)
            self._boxes.pop(request_id, None)
        for delta in self.engine.step():
            self._boxes[delta.request_id].append(delta)
