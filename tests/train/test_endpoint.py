"""Teachers behind an address: our own service, one that is busy, and what is no service."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import torch

from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.errors import RequestError
from abyssal.model.transformer import DeepSeekV3
from abyssal.serve.app import create_app
from abyssal.serve.server import Server
from abyssal.serve.settings import Settings
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import teachers
from abyssal.train.teachers import EndpointTeacher, Manner, Written, _read_choice

ASKED = [(0, "1 + 1 ="), (1, "2 + 2 ="), (2, "3 + 3 =")]


@pytest.fixture(scope="module")
def llm() -> LLM:
    tokenizer = Tokenizer.train(["1 + 1 = the deep sea is dark"] * 4, 320)
    config = ModelConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(1))
    return LLM(model.eval(), tokenizer, options=EngineOptions(deterministic=True))


@contextmanager
def listening(llm: LLM) -> Iterator[str]:
    """The address of `abyssal serve` in a thread of this process."""
    house = Settings(name="tiny", layout="r1")
    server = Server(create_app(llm, house), house)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = threading.Event()
        server._ready = started.set
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert started.wait(30)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/"
        finally:
            server.should_exit = True
            thread.join()


def replies(monkeypatch, *said: httpx.Response) -> list[dict]:
    """A service that gives these replies in turn; what it was asked."""
    asked, left = [], list(said)

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append({"path": request.url.path, **json.loads(request.content)})
        return left.pop(0)

    client = httpx.Client
    transport = httpx.MockTransport(handle)
    monkeypatch.setattr(
        teachers.httpx, "Client", lambda **given: client(transport=transport, **given)
    )
    monkeypatch.setattr(teachers.time, "sleep", lambda _: None)
    return asked


def answered(text: str) -> httpx.Response:
    message = {"message": {"content": text}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [message]})


@pytest.mark.parametrize("form", ["zero", "chat"])
def test_our_own_service_teaches(llm, form):
    manner = Manner(form=form, answers=2, max_tokens=5, seed=3)
    with listening(llm) as url:
        teacher = EndpointTeacher(url, "tiny", at_once=2)
        found = [list(teacher.answer(ASKED, manner)) for _ in range(2)]
    assert found[0] == found[1]  # the seed is sent
    rows = [row for some in found[0] for row in some]
    assert [index for index, _ in rows] == [0, 1, 2]
    for _, written in rows:
        assert len(written) == 2
        assert written[0] != written[1]
        assert {one.end for one in written} <= {"stop", "length"}
        assert all(one.thought is None for one in written)  # a random model closes no thought


def test_a_busy_service_is_asked_again(monkeypatch):
    busy = httpx.Response(429, headers={"Retry-After": "1"})
    asked = replies(monkeypatch, busy, httpx.Response(503), answered("2"))
    teacher = EndpointTeacher("http://far/v1", "big", "secret", at_once=1)
    manner = Manner(form="chat", answers=1, instruct="Think.")
    assert list(teacher.answer(ASKED[:1], manner)) == [[(0, [Written(None, "2", "stop")])]]
    assert [one["path"] for one in asked] == ["/v1/chat/completions"] * 3
    assert asked[0]["messages"] == [{"role": "user", "content": "1 + 1 =\nThink."}]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (httpx.Response(401, text="no key"), "answered 401: 'no key'"),
        (httpx.Response(200, json={"hello": 1}), "another kind of service"),
        (httpx.Response(200, text="<html>"), "another kind of service"),
    ],
)
def test_what_is_no_answer_ends_it(monkeypatch, reply, said):
    replies(monkeypatch, reply)
    teacher = EndpointTeacher("http://far", "big", at_once=1)
    with pytest.raises(RequestError, match=said):
        list(teacher.answer(ASKED[:1], Manner(answers=1)))


def test_nobody_there_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    teacher = EndpointTeacher(f"http://127.0.0.1:{port}", "big", at_once=1)
    with pytest.raises(RequestError, match="cannot be reached"):
        list(teacher.answer(ASKED[:1], Manner(answers=1)))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "2", "reasoning_content": "easy"}, ("easy", "2")),
        ({"content": "2", "reasoning": "easy"}, ("easy", "2")),
        ({"content": "<think>easy</think>2"}, ("easy", "2")),
        ({"content": "easy</think>2"}, ("easy", "2")),
        ({"content": None, "reasoning_content": "easy"}, (None, "easy")),
        ({"content": "2"}, (None, "2")),
    ],
)
def test_a_thought_comes_in_a_field_or_between_tags(message, expected):
    assert _read_choice({"message": message, "finish_reason": "stop"}) == (*expected, "stop")
