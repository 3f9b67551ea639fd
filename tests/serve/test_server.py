"""The serving process: real sockets, real clients, and signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from abyssal.engine.llm import LLM
from abyssal.errors import ConfigError
from abyssal.serve.app import create_app
from abyssal.serve.server import Server, run
from tests.serve.client import ENDLESS, events, settings

ASK = [{"role": "user", "content": "the deep sea"}]
LONG = {"model": "tiny", "messages": ASK, "max_tokens": 400, "stream": True, **ENDLESS}

SERVE = """
import sys
from abyssal.engine.options import EngineOptions
from abyssal.serve.server import run
from abyssal.serve.settings import Settings
house = Settings(name="tiny", layout="v3.1", port=0, drain_s=float(sys.argv[2]))
say = lambda url: print(url, flush=True)
sys.exit(100 + run(sys.argv[1], house, EngineOptions(max_running=4), ready=say))
"""


@contextmanager
def listening(llm: LLM) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    house = settings()
    server = Server(create_app(llm, house), house)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = threading.Event()
        server._ready = started.set
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert started.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serving_process(folder: Path, drain_s: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder), str(drain_s)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.communicate()
        yield process, url
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    tokenizer.save(folder, layout="v3.1")
    return folder


def test_openais_client_chats_streams_and_is_refused_in_its_own_terms(llm: LLM):
    with (
        listening(llm) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        values = {"model": "tiny", "messages": ASK, "max_tokens": 12, "seed": 4}
        whole = client.chat.completions.create(**values)
        pieces = list(client.chat.completions.create(**values, stream=True))
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert text == whole.choices[0].message.content
        assert next(iter(client.models.list())).id == "tiny"
        with pytest.raises(openai.NotFoundError) as refusal:
            client.chat.completions.create(**{**values, "model": "other"})
        assert refusal.value.code == "model_not_found"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_hangs_up_stops_its_answer(llm: LLM, streamed):
    body = json.dumps({**LONG, "max_tokens": 1900, "stream": streamed}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    running = 'vllm:num_requests_running{model_name="tiny"} '
    with listening(llm) as url, httpx.Client(base_url=url) as client:

        def number() -> float:
            return float(client.get("/metrics").text.partition(running)[2].split()[0])

        address = ("127.0.0.1", httpx.URL(url).port)
        with socket.create_connection(address) as connection:
            connection.sendall(head.encode() + body)
            assert any(number() == 1 for _ in range(100))
        assert any(number() == 0 for _ in range(20)), "it would take more than a second by itself"


@pytest.mark.slow
def test_after_a_signal_answers_finish_until_the_drain_ends_the_rest(folder: Path):
    with serving_process(folder, drain_s=1) as (process, url), httpx.Client(timeout=60) as client:
        where = f"{url}/chat/completions"
        with (
            client.stream("POST", where, json={**LONG, "max_tokens": 40}) as short,
            client.stream("POST", where, json={**LONG, "n": 16, "max_tokens": 1900}) as long,
        ):
            parts = [reply.iter_text() for reply in (long, short)]
            begun = [next(one) for one in parts]
            process.send_signal(signal.SIGTERM)
            texts = [text + "".join(one) for text, one in zip(begun, parts, strict=True)]
        last = [events(text)[-1] for text in texts]
        reasons = [one["choices"][0]["finish_reason"] for one in last]
        assert reasons == ["insufficient_system_resource", "length"]
        assert 0 < last[0]["usage"]["completion_tokens"] < 16 * 1900
        _, log = process.communicate(timeout=30)
        assert process.returncode == 100 + signal.SIGTERM
    lines = [json.loads(line) for line in log.splitlines()]  # every line is JSON
    assert any(line.get("completion_tokens") == 40 for line in lines)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(folder: Path):
    with serving_process(folder, drain_s=600) as (process, url):
        body = {**LONG, "n": 4, "max_tokens": 1900}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            parts = reply.iter_text()
            next(parts)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 100 + signal.SIGINT


def test_an_address_that_is_taken_is_said_before_the_model_is_read():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port}: cannot listen there"):
            run("no/such/folder", settings(port=port))
