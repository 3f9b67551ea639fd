"""The service behind real sockets, on a port of its own, for clients that will not do without."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from abyssal.engine.llm import LLM
from abyssal.serve.app import create_app
from abyssal.serve.server import Server, _bound
from abyssal.serve.store import Store
from tests.serve.client import settings

KEY = "sk-of-the-deep-sea-1"


@contextmanager
def listening(
    llm: LLM, max_waiting: int | None = 64, history: Store | None = None, **changes: Any
) -> Iterator[str]:
    """The address of a service in a thread of its own."""
    values = settings(**{"port": 0, "api_keys": (KEY,), **changes})
    with _bound(values) as listener:
        server = Server(create_app(llm, values, max_waiting, history), values)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
