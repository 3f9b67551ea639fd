"""Ctrl-C and SIGTERM as a request: the step in hand is finished and saved first."""

import signal
import threading
from types import FrameType
from typing import Self


class Stopping:
    """While active, remembers the first SIGINT or SIGTERM instead of dying of it."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._before = {n: signal.signal(n, self._note) for n in self.SIGNALS}  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
