"""The application: every route guarded and described, every failure an error object."""

import json
import logging
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abyssal.engine.llm import LLM
from abyssal.serve.app import create_app
from abyssal.serve.guard import ROUTE_AUTH
from abyssal.serve.page import read_page
from abyssal.serve.store import Store
from abyssal.tokenizer.chat import Message, render
from tests.serve.client import serving
from tests.serve.client import settings as service_settings

pytestmark = pytest.mark.anyio

ASK = [{"role": "user", "content": "the deep sea"}]
KEYS = ("a-key-of-the-first-person", "a-key-of-the-second-person")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_route_has_an_auth_class_and_every_class_a_route(llm: LLM):
    app = create_app(llm, service_settings())
    assert {route.path for route in app.routes} == set(ROUTE_AUTH)


async def test_without_a_key_only_public_routes_answer(llm: LLM, store: Store):
    _, assets = read_page()
    async with serving(llm, api_keys=KEYS, history=store) as client:
        chat = "c" * 32
        await client.http.put(f"/history/chats/{chat}", json={}, headers=bearer(KEYS[0]))
        for path, auth in ROUTE_AUTH.items():
            path = path.replace("{model:path}", "tiny").replace("{chat}", chat)
            path = path.replace("{name}", next(iter(assets)))
            replies = [await client.http.get(path), await client.http.post(path, json={})]
            statuses = {reply.status_code for reply in replies}
            assert statuses == ({200, 405} if auth == "public" else {401}), path
            if auth == "key":
                reply = await client.http.get(path, headers=bearer(KEYS[0]))
                no_report = path == "/model/report" and reply.json()["error"]["code"] == "no_report"
                assert reply.status_code in (200, 405) or no_report, path


async def test_people_with_different_keys_share_no_cached_prefixes(llm: LLM):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "the deep sea is " * 60}]}

    async def hits(client, key: str) -> int:
        reply = await client.http.post(
            "/v1/chat/completions", json={**body, "max_tokens": 1}, headers=bearer(key)
        )
        return reply.json()["usage"]["prompt_cache_hit_tokens"]

    async with serving(llm, api_keys=KEYS) as client:
        assert await hits(client, KEYS[0]) == 0
        assert await hits(client, KEYS[0]) > 0
        assert await hits(client, KEYS[1]) == 0
        assert await hits(client, KEYS[1]) > 0


async def test_requests_carry_their_senders_name_and_salt(llm: LLM, monkeypatch):
    made, make = [], llm.prompts.requests

    def noting(*values, **more):
        made.extend(make(*values, **more))
        return made[-1:]

    monkeypatch.setattr(llm.prompts, "requests", noting)
    async with serving(llm, api_keys=KEYS) as client:
        for key in (*KEYS, KEYS[0]):
            body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
            await client.http.post("/v1/completions", json=body, headers=bearer(key))
    senders = [(request.owner, request.salt) for request in made]
    assert senders[0] == senders[2] != senders[1]
    assert len({owner for owner, _ in senders}) == len({salt for _, salt in senders}) == 2


async def test_the_manual_names_every_route_and_loads_nothing(llm: LLM):
    async with serving(llm) as client:
        reply = await client.http.get("/docs")
        described = (await client.http.get("/openapi.json")).json()
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r"<script|<link|src=|url\(|@import|https?://", reply.text)
    for path in described["paths"]:
        assert path in reply.text
    for name in described["components"]["schemas"]:
        assert f"id='{name}'" in reply.text
    links = set(re.findall(r"href='#(\w+)'", reply.text))
    assert links <= set(described["components"]["schemas"])


async def test_the_description_has_a_schema_for_every_body_and_every_reply(llm: LLM):
    async with serving(llm) as client:
        described = (await client.http.get("/openapi.json")).json()
    schemas = described["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert named <= set(schemas)
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], path
            if method == "put" or (method == "post" and not path.endswith("/restore")):
                content = operation["requestBody"]["content"]["application/json"]
                assert content["schema"]["$ref"].rpartition("/")[2] in schemas
    ids = [o["operationId"] for m in described["paths"].values() for o in m.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/models", 405),
        ("GET", "/v1/chat/completions/", 404),
    ],
)
async def test_wrong_places_are_told_in_an_error_object(llm: LLM, method, path, status):
    async with serving(llm) as client:
        reply = await client.http.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert reply.headers["allow"]


async def test_a_bug_is_a_500_with_an_id_that_the_log_has_too(llm: LLM, monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise KeyError("the secret of the prompt")

    monkeypatch.setattr(llm.prompts, "render", broken)
    async with serving(llm) as client:
        with caplog.at_level(logging.ERROR):
            reply = await client.post("/v1/chat/completions", messages=ASK)
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "internal_error"
        assert "secret" not in reply.text
        fields = [r.fields for r in caplog.records if hasattr(r, "fields")]
        assert {"request_id": reply.headers["x-request-id"]} in fields
        assert await client.settled()
        assert (await client.http.get("/health")).status_code == 200


async def test_the_log_counts_tokens_and_never_shows_text(llm: LLM, caplog):
    async with serving(llm) as client:
        with caplog.at_level(logging.INFO):
            reply = await client.whole("/v1/chat/completions", messages=ASK, max_tokens=3)
    (line,) = [r.fields for r in caplog.records if "status" in getattr(r, "fields", ())]
    assert line["status"] == 200
    assert line["completion_tokens"] == reply["usage"]["completion_tokens"]
    assert line["prompt_tokens"] == reply["usage"]["prompt_tokens"]
    assert "deep sea" not in caplog.text


@given(text=st.text(max_size=60))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_detokenize_undoes_tokenize(llm: LLM, text):
    async with serving(llm) as client:
        found = await client.whole("/tokenize", prompt=text, add_special_tokens=False)
        back = await client.whole("/detokenize", tokens=found["tokens"])
        marked = await client.whole("/tokenize", prompt=text, return_token_strs=True)
    assert back["prompt"] == text
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == 2048
    assert marked["tokens"] == [0, *found["tokens"]]
    assert len(marked["token_strs"]) == marked["count"]


@pytest.mark.parametrize("thinking", [True, False])
async def test_a_conversation_is_tokenized_as_the_model_reads_it(llm: LLM, thinking):
    expected = render([Message("user", "the sea")], llm.tokenizer, "v3.1", thinking).tokens
    async with serving(llm) as client:
        found = await client.whole(
            "/tokenize",
            messages=[{"role": "user", "content": "the sea"}],
            chat_template_kwargs={"thinking": thinking},
        )
    assert found["tokens"] == expected


async def test_an_unknown_token_cannot_be_detokenized(llm: LLM):
    async with serving(llm) as client:
        reply = await client.post("/detokenize", tokens=[5, 999_999])
    assert reply.status_code == 400
    assert "999999" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("v3", ["tiny", "deepseek-chat"]),
        ("r1", ["tiny", "deepseek-reasoner"]),
        ("v3.1", ["tiny", "deepseek-chat", "deepseek-reasoner"]),
    ],
)
async def test_models_are_listed_under_all_their_names(llm: LLM, layout, names):
    async with serving(llm, layout=layout) as client:
        for path in ("/v1/models", "/models", "/beta/models"):
            listed = (await client.http.get(path)).json()
            assert [one["id"] for one in listed["data"]] == names
            assert all(("created" in one) == (path == "/v1/models") for one in listed["data"])
        for name in names:
            assert (await client.http.get(f"/v1/models/{name}")).json()["id"] == name


async def test_a_model_may_have_a_folders_name(llm: LLM):
    async with serving(llm, name="org/model") as client:
        assert (await client.http.get("/v1/models/org/model")).json()["id"] == "org/model"
        reply = await client.post("/v1/completions", model="org/model", prompt="a", max_tokens=1)
        assert reply.json()["model"] == "org/model"


async def test_the_balance_is_available_and_costs_nothing(llm: LLM):
    async with serving(llm) as client:
        found = (await client.http.get("/user/balance")).json()
    assert found["is_available"] is True
    (info,) = found["balance_infos"]
    assert info.pop("currency") == "USD"
    assert set(info.values()) == {"0.00"}


async def test_a_service_at_its_end_is_unhealthy_and_takes_nobody(llm: LLM):
    async with serving(llm) as client:
        assert (await client.http.get("/health")).json() == {"status": "ok"}
        await client.service.bridge.drain(1)
        health = await client.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        reply = await client.post("/v1/chat/completions", messages=ASK)
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "shutting_down"
