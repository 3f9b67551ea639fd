"""Nothing passes the guard without a class, a host and a key; everything leaves a line."""

import asyncio
import dataclasses
import hashlib
import hmac
import io
import json
import logging

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse

from abyssal.serve.guard import MAX_HEADER_BYTES, ROUTE_AUTH, Guard
from abyssal.serve.log import ACCESS, JsonLines, log_to
from abyssal.serve.settings import Settings

KEYS = ("first-key-of-the-house", "second-key-of-the-house")
OPEN = Settings(name="tiny", layout="v3.1")
KEYED = dataclasses.replace(OPEN, api_keys=KEYS)
HERE = "http://127.0.0.1:8000"
PAGE = "https://chat.example"


async def tell_state(scope, receive, send):
    """What the guard left for the routes, as JSON."""
    state = {**scope["state"], "salt": scope["state"]["salt"].hex()}
    await JSONResponse(state)(scope, receive, send)


async def never(scope, receive, send):
    raise AssertionError("the guard let it through")


def ask(path="/health", method="GET", settings=OPEN, app=tell_state, url=HERE, headers=()):
    """The answer to one request through the guard."""

    async def go():
        transport = httpx.ASGITransport(Guard(app, settings), client=("1.2.3.4", 5))
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(go())


def ask_raw(headers, settings=OPEN, app=never, path="/v1/models"):
    """The status for headers as they come off the wire, through plain ASGI calls."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.disconnect"}

    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers,
    }  # fmt: skip
    asyncio.run(Guard(app, settings)(scope, receive, send))
    return sent[0]["status"]


def with_key(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def lines():
    """The access log of this test, as it would be written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    ACCESS.addHandler(handler)
    level = ACCESS.level
    ACCESS.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    ACCESS.removeHandler(handler)
    ACCESS.setLevel(level)


# Paths and keys


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/chat/completions/", "/v1//models", "/V1/models", "/docs/x", "/v1/models\n",
     "/admin", "/v1/chat/completions/../../docs", "/openapi.json.bak"],
)  # fmt: skip
def test_a_path_without_a_class_does_not_exist(path):
    headers = [(b"host", b"127.0.0.1")]
    assert ask_raw(headers, path=path) == 404


@pytest.mark.parametrize("path", ROUTE_AUTH)
def test_a_path_is_open_to_all_or_to_keys_as_the_table_says(path):
    is_public = path in ("/health", "/docs", "/openapi.json", "/", "/assets/{name}")
    path = path.replace("{model:path}", "deepseek-ai/V3")
    if is_public:
        assert ask_raw([(b"host", b"127.0.0.1")], KEYED, path=path, app=answer_200) == 200
    else:
        assert ask_raw([(b"host", b"127.0.0.1")], KEYED, path=path) == 401
        assert ask(path, settings=KEYED, headers=with_key(KEYS[1])).status_code == 200
        assert ask(path, settings=OPEN).status_code == 200


async def answer_200(scope, receive, send):
    await JSONResponse({})(scope, receive, send)


@pytest.mark.parametrize(
    "value",
    [
        "", "Bearer", "Bearer ", f"Basic {KEYS[0]}", KEYS[0], f"Bearer {KEYS[0]}x",
        f"Bearer {KEYS[0][:-1]}", f"Bearer {KEYS[0].upper()}", f"Bearer {KEYS[0]} {KEYS[1]}",
        f"Bearer {KEYS[0]},", f"Bearer\t{KEYS[0]}", f"Bearer {KEYS[0]}\x00", "Bearer é",
        "Bearer " + "a" * 8000,
    ],
)  # fmt: skip
def test_nothing_but_a_key_is_a_key(value):
    headers = [(b"host", b"127.0.0.1"), (b"authorization", value.encode("latin-1"))]
    assert ask_raw(headers, KEYED) == 401


def test_the_scheme_is_bearer_in_any_case():
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"authorization": f"{scheme} {KEYS[0]}"}
        assert ask("/v1/models", settings=KEYED, headers=headers).status_code == 200


def test_two_authorization_headers_are_one_too_many():
    right = (b"authorization", f"Bearer {KEYS[0]}".encode())
    host = (b"host", b"127.0.0.1")
    for other in (right, (b"authorization", b"Bearer x")):
        assert ask_raw([host, right, other], KEYED) == 400
        assert ask_raw([host, other, right], KEYED) == 400


def test_every_known_key_is_compared_whichever_is_right(monkeypatch):
    compared = []
    honest = hmac.compare_digest

    def count(ours, theirs):
        compared.append((ours, theirs))
        return honest(ours, theirs)

    monkeypatch.setattr(hmac, "compare_digest", count)
    for key in (*KEYS, "a key that nobody has", ""):
        compared.clear()
        ask("/v1/models", settings=KEYED, headers=with_key(key))
        assert len(compared) == len(KEYS)
        assert {len(side) for pair in compared for side in pair} == {32}


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/models", "invalid_request_error"), ("/models", "authentication_error")]
)
def test_a_refusal_is_in_the_dialect_of_the_path_and_keeps_the_key_to_itself(path, kind):
    answer = ask(path, settings=KEYED, headers=with_key("my-secret"))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == kind
    assert "my-secret" not in answer.text


def test_an_owner_is_a_label_of_its_key_and_each_has_a_salt_of_its_own():
    first, again, second = (
        ask("/v1/models", settings=KEYED, headers=with_key(key)).json()
        for key in (KEYS[0], KEYS[0], KEYS[1])
    )
    assert first["owner"] == hashlib.sha256(KEYS[0].encode()).hexdigest()[:8]
    assert first["salt"] == again["salt"] != second["salt"]
    assert len(first["salt"]) == 64
    nobody = ask("/v1/models").json()
    assert (nobody["owner"], nobody["salt"]) == ("", "")


# Hosts and origins


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("127.0.0.1", OPEN, 200),
        ("127.0.0.1:8000", OPEN, 200),
        ("localhost:9", OPEN, 200),
        ("LOCALHOST.", OPEN, 200),
        ("[::1]:8000", OPEN, 200),
        ("192.168.1.5:80", OPEN, 200),  # an address is nobody's name
        ("evil.example", OPEN, 421),
        ("localhost.evil.example", OPEN, 421),
        ("127.0.0.1.evil.example", OPEN, 421),
        ("evil.example:127", OPEN, 421),
        ("2130706433", OPEN, 421),
        ("", OPEN, 421),
        (":8000", OPEN, 421),
        ("models.example", OPEN, 421),
        ("models.example:80", dataclasses.replace(OPEN, allowed_hosts=("Models.example",)), 200),
        ("a.models.example", dataclasses.replace(OPEN, allowed_hosts=("models.example",)), 421),
        ("any.example", dataclasses.replace(KEYED, allowed_hosts=("*",)), 200),
        ("box", dataclasses.replace(KEYED, host="box"), 200),
        ("localhost", dataclasses.replace(KEYED, host="0.0.0.0"), 421),
        ("10.0.0.1", dataclasses.replace(KEYED, host="0.0.0.0"), 200),
    ],
)
def test_the_host_is_an_address_or_a_name_this_server_has(host, settings, status):
    headers = [(b"host", host.encode())]
    assert ask_raw(headers, settings, answer_200, "/health") == status


def test_a_host_is_there_once():
    assert ask_raw([]) == 400
    assert ask_raw([(b"host", b"127.0.0.1"), (b"host", b"127.0.0.1")]) == 400


def test_pages_of_others_have_no_business_here():
    for origin in (PAGE, "null", "http://127.0.0.1:9000", "http://127.0.0.1", "", HERE + "@x"):
        answer = ask(headers={"origin": origin}, app=never)
        assert answer.status_code == 403, origin
        assert "access-control-allow-origin" not in answer.headers
    assert ask(headers={"origin": HERE}).status_code == 200  # our own /docs
    two = [(b"host", b"127.0.0.1"), (b"origin", PAGE.encode()), (b"origin", PAGE.encode())]
    assert ask_raw(two, dataclasses.replace(OPEN, cors_origins=(PAGE,))) == 403


def test_a_page_that_is_named_may_call_and_read_the_answer_even_a_refusal():
    settings = dataclasses.replace(KEYED, cors_origins=(PAGE,))
    for headers, status in ((with_key(KEYS[0]), 200), ({}, 401)):
        answer = ask("/v1/models", settings=settings, headers={**headers, "origin": PAGE})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
    other = ask("/v1/models", settings=settings, headers={"origin": PAGE + ".evil"}, app=never)
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


def test_a_browser_may_ask_first_without_a_key():
    settings = dataclasses.replace(KEYED, cors_origins=(PAGE,))
    asks = {"origin": PAGE, "access-control-request-method": "POST"}
    answer = ask("/v1/models", "OPTIONS", settings, never, headers=asks)
    assert answer.status_code == 204
    assert "authorization" in answer.headers["access-control-allow-headers"]
    methods = answer.headers["access-control-allow-methods"].split(", ")
    assert methods == ["GET", "POST", "PUT", "PATCH", "DELETE"]
    assert ask("/v1/models", "OPTIONS", KEYED, never, headers=asks).status_code == 403
    assert ask("/nowhere", "OPTIONS", settings, never, headers=asks).status_code == 404
    # Only the question is free: the rest of OPTIONS, and other methods, need the key.
    assert (
        ask("/v1/models", "OPTIONS", settings, never, headers={"origin": PAGE}).status_code == 401
    )
    assert ask("/v1/models", "GET", settings, never, headers=asks).status_code == 401


# Sizes


def test_headers_and_paths_have_an_end():
    host = (b"host", b"127.0.0.1")
    assert ask_raw([host, (b"x", b"a" * MAX_HEADER_BYTES)], app=answer_200, path="/health") == 200
    assert ask_raw([host, (b"x", b"a" * (MAX_HEADER_BYTES + 1))]) == 431
    assert ask_raw([host, *[(b"x", b"a" * 5000)] * 8]) == 431
    assert ask_raw([host], path="/v1/models/" + "a" * 3000) == 414
    assert ask("/v1/models?" + "a" * 3000, app=never).status_code == 414


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"host", b"origin", b"authorization", b"x-request-id", b"x"]),
            st.binary(max_size=40) | st.sampled_from([b"127.0.0.1", b"Bearer " + KEYS[0].encode()]),
        ),
        max_size=5,
    )
)
def test_any_headers_get_an_answer(headers):
    assert ask_raw(headers, KEYED, answer_200) in (200, 400, 401, 403, 421)


# Ids and lines


def test_an_answer_has_the_id_of_its_request():
    given = ask(headers={"x-request-id": "abc-1.2_3"})
    assert given.headers["x-request-id"] == given.json()["request_id"] == "abc-1.2_3"
    for bad in ("a b", "a" * 65, "", "é", 'a"'):
        headers = [(b"x-request-id", bad.encode())]
        ours = ask(headers=headers)
        assert ours.headers["x-request-id"] == ours.json()["request_id"]
        assert len(ours.json()["request_id"]) == 32
    ids = {ask().headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5
    assert "x-request-id" in ask("/nowhere").headers


def test_one_request_is_one_line_that_keeps_its_secrets(lines):
    async def count_tokens(scope, receive, send):
        scope["state"]["tokens"] = {"prompt_tokens": 3, "completion_tokens": 5}
        await answer_200(scope, receive, send)

    headers = {**with_key(KEYS[0]), "x-request-id": "r1"}
    ask("/v1/models?prompt=secret", settings=KEYED, app=count_tokens, headers=headers)
    (line,) = lines()
    label = hashlib.sha256(KEYS[0].encode()).hexdigest()[:8]
    assert line.pop("ms") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "logger": "abyssal.serve.access", "event": "request", "method": "GET",
        "path": "/v1/models", "status": 200, "request_id": "r1", "key": label,
        "prompt_tokens": 3, "completion_tokens": 5,
    }  # fmt: skip


def test_no_path_forges_a_line(lines):
    ask_raw([(b"host", b"127.0.0.1")], path='/a\n{"status": 200}\x1b[2J\u2028\ud800')
    (line,) = lines()
    assert line["status"] == 404
    ask_raw([(b"host", b"127.0.0.1")], path="/" + "a" * 10_000)
    assert len(lines()[1]["path"]) == 200


def test_a_bug_is_logged_as_500_and_goes_on_to_its_handler(lines):
    async def fail(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(app=fail)
    assert lines()[0]["status"] == 500


def test_a_client_that_left_before_the_answer_is_logged_as_499(lines):
    async def listen(scope, receive, send):
        await receive()
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        ask_raw([(b"host", b"127.0.0.1")], app=listen)
    assert lines()[0]["status"] == 499


def test_an_answer_that_began_keeps_its_status_when_the_client_leaves(lines):
    async def answer_then_listen(scope, receive, send):
        await answer_200(scope, receive, send)
        await receive()

    assert ask_raw([(b"host", b"127.0.0.1")], app=answer_then_listen) == 200
    assert lines()[0]["status"] == 200


def test_websockets_are_closed_and_the_lifespan_passes():
    seen = []

    async def send(message):
        seen.append(message)

    async def app(scope, receive, send):
        seen.append(scope["type"])

    for kind in ("websocket", "lifespan"):
        asyncio.run(Guard(app, OPEN)({"type": kind, "path": "/health", "headers": []}, None, send))
    assert seen == [{"type": "websocket.close", "code": 1008}, "lifespan"]


def test_the_log_is_json_lines_once_with_the_end_of_a_traceback(caplog):
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("abyssal", "uvicorn", "uvicorn.error")]
    before = [(one, one.handlers, one.level, one.propagate) for one in loggers]
    try:
        log_to(stream)
        logging.getLogger("uvicorn.error").info("started on %s\nnow", "here")
        try:
            raise ValueError("x" * 10_000 + "the end")
        except ValueError:
            logging.getLogger("abyssal.serve").exception("a request failed")
        logging.getLogger("uvicorn.access").info("GET /secret")
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.level, logger.propagate = handlers, level, propagate
        logging.getLogger("uvicorn.access").disabled = False
    started, failed = (json.loads(line) for line in stream.getvalue().splitlines())
    assert started["event"] == "started on here\nnow"
    assert failed["trace"].endswith("the end")
    assert len(failed["trace"]) == 2000
    assert not caplog.records  # nothing is written a second time by whoever set up the root logger
