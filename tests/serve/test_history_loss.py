"""A server that is killed while clients write has lost nothing that it answered."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow

CLIENTS = 8
SERVE = """
import sys
from pathlib import Path
from abyssal.serve.server import run
from abyssal.serve.settings import Settings
house = Settings(name="tiny", layout="v3.1", port=0, history=Path(sys.argv[2]))
run(sys.argv[1], house, ready=lambda url: print(url, flush=True))
"""


@contextmanager
def serving(folder: Path, history: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder), str(history)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def write(url: str, client: int, life: int, acknowledged: dict[tuple[str, str], str]) -> None:
    """One message after another, until nobody answers; each that was answered is noted."""
    chat, place = f"{client:032x}", 0
    with httpx.Client(base_url=url, timeout=30) as http:
        try:
            assert http.put(f"/history/chats/{chat}", json={}).status_code == 200
            while True:
                message, content = f"{life:016x}{place:016x}", f"{client} in life {life}: {place}"
                body = {"parent": None, "role": "user", "content": content}
                path = f"/history/chats/{chat}/messages/{message}"
                assert http.put(path, json=body).status_code == 200
                acknowledged[chat, message] = content
                place += 1
        except httpx.TransportError:
            return


def kept(history: Path) -> dict[tuple[str, str], str]:
    """What the file has, if it is sound."""
    with sqlite3.connect(history) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        asked = (
            "SELECT chats.id, messages.id, content FROM messages JOIN chats ON chat = chats.number"
        )
        found = {(chat, message): text for chat, message, text in connection.execute(asked)}
        for table in ("message_words", "title_words"):
            connection.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")
    connection.close()
    return found


def test_whatever_was_acknowledged_is_there_after_kill_9(model, tokenizer, tmp_path):
    folder, history = tmp_path / "model", tmp_path / "history.sqlite3"
    model.save(folder)
    tokenizer.save(folder, layout="v3.1")
    acknowledged: dict[tuple[str, str], str] = {}
    for life in (1, 2):  # the second life begins on what the first one left
        with serving(folder, history) as (process, url):
            before = len(acknowledged)
            clients = [
                threading.Thread(target=write, args=(url, client, life, acknowledged))
                for client in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            while len(acknowledged) < before + 200 and process.poll() is None:
                time.sleep(0.01)
            process.kill()
            for client in clients:
                client.join()
        assert len(acknowledged) >= before + 200
        found = kept(history)
        assert acknowledged.items() <= found.items()
        assert len(found) <= len(acknowledged) + CLIENTS * life  # the last ones were on their way
