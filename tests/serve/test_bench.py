"""The load client against a server whose every delay is known."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from abyssal.engine.latency import Load
from abyssal.errors import RequestError
from abyssal.serve.bench import Target, measure

THINKS_S = 0.15  # before the first token
WRITES_S = 0.05  # before each of the others
TOKENS_PER_WORD = 2


class Small:
    """A server of completions that keeps count of who is inside; `room` at a time."""

    def __init__(self, room: int = 1000):
        self.room, self.inside, self.most = room, 0, 0
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        self.app = FastAPI()
        self.app.get("/v1/models")(lambda: {"data": [{"id": "small"}, {"id": "other"}]})
        self.app.post("/v1/completions", response_model=None)(self.complete)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.keys.add(request.headers.get("Authorization"))
        usage = {
            "prompt_tokens": TOKENS_PER_WORD * len(body["prompt"].split()),
            "completion_tokens": body["max_tokens"],
        }
        if not body.get("stream"):
            return JSONResponse({"choices": [{"text": "a"}], "usage": usage})
        self.bodies.append(body)
        if self.inside >= self.room:
            return JSONResponse({"error": {}}, 429, headers={"Retry-After": "0"})
        if body["temperature"] == 2:
            return JSONResponse({"error": {"message": "too hot"}}, 400)
        self.inside += 1
        self.most = max(self.most, self.inside)
        return StreamingResponse(self.write(body, usage), media_type="text/event-stream")

    async def write(self, body: dict, usage: dict) -> "Iterator[str]":
        for i in range(body["max_tokens"]):
            await asyncio.sleep(WRITES_S if i else THINKS_S)
            text = ": keep-alive\n\n" if i == 1 else ""
            chunk = {"choices": [{"text": "a"}], "usage": None}
            yield f"{text}data: {json.dumps(chunk)}\n\n"
            if body["temperature"] == 1.5 and i == 1:
                yield 'data: {"error": {"message": "fell over"}}\n\n'
        self.inside -= 1
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


@contextlib.contextmanager
def running(small: Small) -> Iterator[Target]:
    server = uvicorn.Server(uvicorn.Config(small.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Target(f"http://127.0.0.1:{port}")
    server.should_exit = True
    thread.join()


def test_what_is_measured_is_what_the_server_does():
    small = Small()
    with running(small) as target:
        load = Load(concurrency=3, requests=6, prompt_tokens=40, answer_tokens=5)
        (found,) = measure(target, [load])
    assert (found.requests, found.failed, found.refused) == (6, 0, 0)
    assert (found.answer_tokens, found.prompt_tokens) == (6 * 5, 6 * 40)
    assert small.most == 3
    one_s = THINKS_S + 4 * WRITES_S
    assert 2 * one_s < found.elapsed_s < 2 * one_s + 3
    assert found.tokens_per_s == pytest.approx(30 / found.elapsed_s)
    assert 1e3 * THINKS_S < found.first_token_median_ms < 1e3 * THINKS_S + 400
    assert found.first_token_p99_ms >= found.first_token_median_ms
    assert 1e3 * WRITES_S - 10 < found.between_tokens_median_ms < 1e3 * WRITES_S + 80


def test_prompts_differ_and_requests_say_what_the_load_says():
    small = Small()
    with running(small) as target:
        load = Load(concurrency=4, prompt_tokens=20, answer_tokens=2, temperature=0.5)
        measure(target._replace(model="other", key="secret"), [load])
    assert len({body["prompt"] for body in small.bodies}) == len(small.bodies) == 8
    assert {body["model"] for body in small.bodies} == {"other"}
    assert {(b["temperature"], b["ignore_eos"], b["max_tokens"]) for b in small.bodies} == {
        (0.5, True, 2)
    }
    assert small.keys == {"Bearer secret"}


def test_a_refused_request_comes_again_and_is_counted():
    small = Small(room=1)
    with running(small) as target:
        (found,) = measure(target, [Load(concurrency=3, requests=3, answer_tokens=2)])
    assert (found.requests, found.failed, small.most) == (3, 0, 1)
    assert found.refused == len(small.bodies) - 3 > 0


@pytest.mark.parametrize(("temperature", "told"), [(2.0, "too hot"), (1.5, "fell over")])
def test_an_error_is_a_failed_request_not_the_end(temperature, told):
    with running(Small()) as target:
        load = Load(concurrency=2, requests=4, answer_tokens=3, temperature=temperature)
        (found,) = measure(target, [load])
    assert (found.requests, found.failed) == (0, 4)
    assert told in str(found.first_error)


def test_a_server_that_is_not_there_or_has_no_completions_is_an_error_of_ours():
    with pytest.raises(RequestError, match="start the server"):
        measure(Target("http://127.0.0.1:9"), [Load(concurrency=1)])
    small = Small()
    small.app.routes[:] = [r for r in small.app.routes if "completions" not in str(r)]
    with running(small) as target, pytest.raises(RequestError, match="answered 404"):
        measure(target, [Load(concurrency=1)])


def test_a_connection_cut_in_the_middle_is_a_failed_request():
    async def cut(request: Request) -> Response:
        body = await request.json()
        if not body.get("stream"):
            return JSONResponse({"usage": {"prompt_tokens": 4}})

        async def half() -> "Iterator[str]":
            yield 'data: {"choices": [{"text": "a"}]}\n\n'
            raise ConnectionAbortedError

        return StreamingResponse(half())

    small = Small()
    small.complete = cut
    small.app = FastAPI()
    small.app.post("/v1/completions", response_model=None)(cut)
    with running(small) as target:
        (found,) = measure(target._replace(model="small"), [Load(concurrency=1, requests=1)])
    assert found.failed == 1
    assert issubclass(getattr(httpx, found.first_error.partition(":")[0]), httpx.HTTPError)
