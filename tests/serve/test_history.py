"""The routes of the history: what they promise, to whom, and that nothing sent breaks them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abyssal.engine.llm import LLM
from abyssal.serve import history as routes
from abyssal.serve.store import Store
from tests.serve.client import serving

pytestmark = pytest.mark.anyio

KEYS = ("a-key-of-the-first-person", "a-key-of-the-second-person")
A, B, C, D = (letter * 32 for letter in "abcd")


class Person:
    """Somebody with a key, who asks and expects an answer."""

    def __init__(self, http: httpx.AsyncClient, key: str = ""):
        self.http, self.headers = http, {"authorization": f"Bearer {key}"} if key else {}

    async def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        url = f"/history{path}"
        return await self.http.request(method, url, json=body, headers=self.headers)

    async def get(self, method: str, path: str, body: Any = None) -> Any:
        reply = await self.ask(method, path, body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str, str]:
        """Status, code and param of a refusal."""
        reply = await self.ask(method, path, body)
        assert reply.status_code >= 400, reply.text
        assert len(reply.content) < 4096
        error = reply.json()["error"]
        return reply.status_code, error["code"], error["param"]

    async def say(self, chat: str, message: str, content: str = "hello", **more: Any) -> Any:
        body = {"parent": None, "role": "user", "content": content, **more}
        return await self.get("PUT", f"/chats/{chat}/messages/{message}", body)

    async def listed(self, values: str = "") -> list[str]:
        found = await self.get("GET", f"/chats?{values}")
        return [chat["id"] for chat in found["data"]]


@asynccontextmanager
async def people(llm: LLM, store: Store) -> AsyncIterator[tuple[Person, Person]]:
    async with serving(llm, history=store, api_keys=KEYS) as client:
        yield Person(client.http, KEYS[0]), Person(client.http, KEYS[1])


@asynccontextmanager
async def somebody(llm: LLM, store: Store | None) -> AsyncIterator[Person]:
    async with serving(llm, history=store) as client:
        yield Person(client.http)


async def test_a_chat_is_made_filled_changed_deleted_and_restored(llm: LLM, store: Store):
    async with somebody(llm, store) as me:
        made = await me.get("PUT", f"/chats/{A}", {"title": "The sea", "options": {"top_p": 0.5}})
        assert set(made) == {
            "id", "title", "folder", "pinned", "options", "current", "created", "updated", "deleted"
        }  # fmt: skip
        said = await me.say(A, B, "how deep?", data={"attachments": [{"name": "a", "text": "b"}]})
        assert said["data"]["attachments"][0]["name"] == "a"
        answer = {"parent": B, "role": "assistant", "content": "deep", "reasoning": "hm"}
        await me.get("PUT", f"/chats/{A}/messages/{C}", answer)
        whole = await me.get("GET", f"/chats/{A}")
        assert [(m["id"], m["parent"]) for m in whole["messages"]] == [(B, None), (C, B)]
        assert whole["messages"][1]["reasoning"] == "hm"
        assert whole["current"] == C
        assert whole["options"] == {"top_p": 0.5}
        changed = await me.get(
            "PUT", f"/chats/{A}", {"folder": "fish", "pinned": True, "current": B}
        )
        assert (changed["title"], changed["folder"], changed["current"]) == ("The sea", "fish", B)
        changed = await me.get("PUT", f"/chats/{A}", {"folder": None, "title": None})
        assert (changed["title"], changed["folder"]) == ("The sea", None)
        assert await me.listed() == [A]
        gone = await me.get("DELETE", f"/chats/{A}")
        assert gone["deleted"] >= gone["updated"]
        assert (await me.listed(), await me.listed("deleted=true")) == ([], [A])
        await me.get("POST", f"/chats/{A}/restore")
        assert (await me.listed(), await me.listed("deleted=true")) == ([A], [])
        await me.get("DELETE", f"/chats/{A}?forever=true")
        assert await me.refused("GET", f"/chats/{A}") == (404, "no_chat", "chat")
        assert await me.refused("POST", f"/chats/{A}/restore") == (404, "no_chat", "chat")
        assert await me.listed("deleted=true") == []


async def test_empty_values_of_a_query_were_left_out(llm: LLM, store: Store):
    async with somebody(llm, store) as me:
        for chat in (A, B, C):
            await me.get("PUT", f"/chats/{chat}", {"folder": "x" if chat == B else None})
        assert await me.listed("query=&folder=&deleted=&limit=&after=") == [C, B, A]
        assert await me.listed("folder=x") == [B]
        first = await me.get("GET", "/chats?limit=2")
        assert await me.listed(f"after={first['next']}") == [A]


async def test_two_keys_share_nothing_by_any_route(llm: LLM, store: Store):
    async with people(llm, store) as (anna, ben):
        await anna.get("PUT", f"/chats/{A}", {"title": "secret"})
        await anna.say(A, B, "the secret of the sea")
        nothing = 404, "no_chat", "chat"
        message = {"parent": None, "role": "user", "content": "x"}
        assert await ben.refused("GET", f"/chats/{A}") == nothing
        assert await ben.refused("DELETE", f"/chats/{A}") == nothing
        assert await ben.refused("DELETE", f"/chats/{A}?forever=true") == nothing
        assert await ben.refused("POST", f"/chats/{A}/restore") == nothing
        assert await ben.refused("PUT", f"/chats/{A}/messages/{B}", message) == nothing
        assert await ben.refused("GET", f"/export?chat={A}") == nothing
        assert await ben.listed() == await ben.listed("query=secret") == []
        assert (await ben.get("GET", "/export"))["chats"] == []
        assert (await ben.ask("GET", "/export?format=markdown")).text == ""
        # A name says nothing about another's: making it, or importing it, goes on as if alone.
        exported = await anna.get("GET", "/export")
        assert await ben.get("POST", "/import", exported) == {
            "chats": 1,
            "messages": 1,
            "skipped": 0,
        }
        await ben.get("PUT", f"/chats/{A}", {"title": "Ben's"})
        await ben.say(A, B, "nothing")
        await ben.get("DELETE", f"/chats/{A}?forever=true")
        mine = await anna.get("GET", f"/chats/{A}")
        assert (mine["title"], mine["messages"][0]["content"]) == (
            "secret",
            "the secret of the sea",
        )
        page = await anna.get("GET", "/chats?limit=1")
        await ben.get("PUT", f"/chats/{D}", {})
        await anna.get("PUT", f"/chats/{C}", {})
        cursor = (await anna.get("GET", "/chats?limit=1"))["next"]
        assert page["next"] is None
        assert set(await ben.listed(f"after={cursor}")) <= {D}


async def test_who_has_no_key_gets_nowhere(llm: LLM, store: Store):
    async with serving(llm, history=store, api_keys=KEYS) as client:
        stranger = Person(client.http, "a-key-of-nobody-at-all")
        for method, path in (
            ("GET", "/chats"), ("GET", f"/chats/{A}"), ("PUT", f"/chats/{A}"),
            ("DELETE", f"/chats/{A}"), ("POST", f"/chats/{A}/restore"),
            ("PUT", f"/chats/{A}/messages/{B}"), ("GET", "/export"), ("POST", "/import"),
        ):  # fmt: skip
            assert (await stranger.refused(method, path, {}))[0] == 401


async def test_without_a_history_every_route_says_so(llm: LLM):
    async with somebody(llm, None) as me:
        message = {"parent": None, "role": "user", "content": "x"}
        for method, path, body in (
            ("GET", "/chats", None), ("GET", f"/chats/{A}", None), ("PUT", f"/chats/{A}", {}),
            ("DELETE", f"/chats/{A}", None), ("POST", f"/chats/{A}/restore", None),
            ("PUT", f"/chats/{A}/messages/{B}", message), ("GET", "/export", None),
            ("POST", "/import", {"format": "abyssal-history", "version": 1, "chats": []}),
        ):  # fmt: skip
            assert await me.refused(method, path, body) == (404, "no_history", None)


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("PUT", f"/chats/{A}", {"title": "a" * 1001}, "title"),
        ("PUT", f"/chats/{A}", {"title": 5}, "title"),
        ("PUT", f"/chats/{A}", {"folder": ""}, "folder"),
        ("PUT", f"/chats/{A}", {"folder": "a" * 201}, "folder"),
        ("PUT", f"/chats/{A}", {"pinned": 1}, "pinned"),
        ("PUT", f"/chats/{A}", {"options": []}, "options"),
        ("PUT", f"/chats/{A}", {"options": {"a": "b" * 2**18}}, "options"),
        ("PUT", f"/chats/{A}", {"current": "x"}, "current"),
        ("PUT", f"/chats/{A}", {"current": D}, "current"),
        ("PUT", f"/chats/{A.upper()}", {}, "chat"),
        ("PUT", f"/chats/{A}a", {}, "chat"),
        ("PUT", "/chats/%00", {}, "chat"),
        ("GET", "/chats/' OR 1=1 --", None, "chat"),
        (
            "PUT",
            f"/chats/{A}/messages/x",
            {"parent": None, "role": "user", "content": ""},
            "message",
        ),
        ("PUT", f"/chats/{A}/messages/{B}", {"role": "user", "content": ""}, "parent"),
        ("PUT", f"/chats/{A}/messages/{B}", {"parent": B, "role": "user", "content": ""}, "parent"),
        ("PUT", f"/chats/{A}/messages/{C}", {"parent": D, "role": "user", "content": ""}, "parent"),
        (
            "PUT",
            f"/chats/{A}/messages/{C}",
            {"parent": None, "role": "king", "content": ""},
            "role",
        ),
        ("PUT", f"/chats/{A}/messages/{C}", {"parent": None, "role": "user"}, "content"),
        ("GET", "/chats?limit=0", None, "limit"),
        ("GET", "/chats?limit=201", None, "limit"),
        ("GET", "/chats?limit=٣", None, "limit"),
        ("GET", "/chats?deleted=yes", None, "deleted"),
        ("GET", "/chats?after=x", None, "after"),
        ("GET", "/chats?after=1-2-3-4", None, "after"),
        ("GET", "/chats?query=" + "+".join("abcdefghijklmnopq"), None, "query"),
        ("DELETE", f"/chats/{A}?forever=1", None, "forever"),
        ("GET", "/export?format=pdf", None, "format"),
        ("GET", "/export?chat=x", None, "chat"),
        ("POST", "/import", {}, "format"),
        ("POST", "/import", {"format": "abyssal-history", "version": 2, "chats": []}, "version"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(llm: LLM, store: Store, method, path, body, param):
    async with somebody(llm, store) as me:
        await me.get("PUT", f"/chats/{A}", {"title": "mine"})
        await me.say(A, B)
        status, _, named = await me.refused(method, path, body)
        assert (status, named) == (400, param)
        assert await me.listed() == [A]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9) | st.sampled_from([A, B, "\0", "a" * 5000, 2**70, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip
FIELDS = st.sampled_from([
    "title", "folder", "pinned", "options", "current", "parent", "role", "content", "reasoning",
    "data", "format", "version", "chats", "messages", "id", "created", "updated", "deleted",
])  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(bodies=st.lists(st.dictionaries(FIELDS, JUNK, max_size=4), min_size=1, max_size=3))
async def test_any_body_is_kept_or_refused(llm: LLM, store: Store, bodies):
    async with somebody(llm, store) as me:
        for body in bodies:
            message = {"parent": None, "role": "user", "content": "x", **body}
            saved = {"id": C, "created": 1, "updated": 1, "messages": [], **body}
            for method, path, sent in (
                ("PUT", f"/chats/{A}", body),
                ("PUT", f"/chats/{A}/messages/{B}", message),
                ("POST", "/import", {"format": "abyssal-history", "version": 1, "chats": [saved]}),
                ("POST", "/import", {"format": "abyssal-history", "version": 1, **body}),
            ):
                reply = await me.ask(method, path, sent)
                assert reply.status_code in (200, 400, 404), reply.text
        for path in ("/chats", "/export", "/export?format=markdown"):
            assert (await me.ask("GET", path)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"options":' + b'{"a":' * 70 + b"1" + b"}" * 71, 400),
        (b"[" * 100_000, 400),
        (b'{"title": "\\ud800"}', 400),
        (b'{"options": {"\\udc00": 1}}', 400),
        (b'{"title": "\xff"}', 400),
        (b'{"options": {"a": NaN}}', 400),
        (b'{"title": "a", "title": "b"}', 400),
        (b'{"title": "' + b"a" * (8 * 2**20) + b'"}', 413),
        (b'{"title": "a\\u0000b", "options": {"\\u0000": "\\u0000"}}', 200),
    ],
)
async def test_hostile_bodies_are_refused_or_kept_as_they_are(llm: LLM, store: Store, body, status):
    async with serving(llm, history=store) as client:
        reply = await client.http.put(
            f"/history/chats/{A}", content=body, headers={"content-type": "application/json"}
        )
        assert reply.status_code == status, reply.text
        if status == 200:
            assert reply.json()["title"] == "a\0b"
            kept = (await client.http.get(f"/history/chats/{A}")).json()
            assert kept["options"] == {"\0": "\0"}


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    query=st.text(max_size=40)
    | st.lists(
        st.sampled_from(
            ['"', "'", "*", "^", "(", ")", "NEAR(a b, 2)", "AND", "OR", "NOT", "title:", "-",
             "{a b}:", "; DROP TABLE chats", "%", "_", "\\", "\0", "sea"]
        ),
        max_size=6,
    ).map(" ".join)
)  # fmt: skip
async def test_a_query_is_words_and_never_an_expression(llm: LLM, store: Store, query):
    async with somebody(llm, store) as me:
        await me.get("PUT", f"/chats/{A}", {"title": query[:1000]})
        await me.say(A, B, "the sea")
        reply = await me.http.get("/history/chats", params={"query": query})
        assert reply.status_code in (200, 400)
        if reply.status_code == 200 and any(letter.isalnum() for letter in query):
            assert [chat["id"] for chat in reply.json()["data"]] == [A]
        raw = await me.http.get("/history/chats?query=%ED%A0%80%FF%00")
        assert raw.status_code == 200


async def test_chats_are_found_by_words_of_titles_and_messages_in_any_script(
    llm: LLM, store: Store
):
    async with somebody(llm, store) as me:
        for chat, title, content in (
            (A, "Cooking", "perché il caffè è freddo?"),
            (B, "深海", "今天我们去看鱼"),
            (C, "البحر", "ذهبت إلى مَدْرَسَةٍ كبيرة"),
        ):
            await me.get("PUT", f"/chats/{chat}", {"title": title})
            await me.say(chat, D, content)
        for query, expected in (
            ("caffe", A), ("cook perche", A), ("海", B), ("看鱼", B), ("深海 鱼", B),
            ("مدرسة", C), ("بحر", C),
        ):  # fmt: skip
            assert await me.listed(f"query={query}") == [expected], query
        found = await me.get("GET", "/chats?query=مدرسة")
        assert "مَدْرَسَةٍ" in found["data"][0]["snippet"]
        await me.say(B, D, "something else")
        assert await me.listed("query=看鱼") == []  # what was replaced is not found any more


async def test_thirty_two_clients_write_at_once(llm: LLM, store: Store):
    async with somebody(llm, store) as me:

        async def write(number: int) -> None:
            chat = f"{number:032x}"
            await me.get("PUT", f"/chats/{chat}", {})
            for place in range(5):
                await me.say(chat, f"{place:032x}", f"{number} {place}")

        await asyncio.gather(*(write(number) for number in range(32)))
        assert len(await me.listed("limit=200")) == 32
        for number in range(32):
            whole = await me.get("GET", f"/chats/{number:032x}")
            assert [m["content"] for m in whole["messages"]] == [f"{number} {i}" for i in range(5)]


async def test_an_export_is_imported_as_it_was_and_only_once(llm: LLM, store: Store, tmp_path):
    async with somebody(llm, store) as me:
        deep = json.loads('{"a":' * 62 + "1" + "}" * 62)
        for chat in (A, B, C):
            changes = {"title": f"chat {chat[0]} ]}}", "pinned": chat == A, "options": deep}
            await me.get("PUT", f"/chats/{chat}", changes)
            await me.say(chat, A, "first \0 深海", data=deep)
            await me.say(chat, B, "second", parent=A, role="assistant", reasoning="thought")
            await me.say(chat, D, "another", parent=A)
        await me.get("DELETE", f"/chats/{C}")
        reply = await me.ask("GET", "/export?format=json")
        name = reply.headers["content-disposition"]
        assert name.startswith('attachment; filename="abyssal-chats-')
        assert name.endswith('.json"')
        trashed = (await me.get("GET", f"/export?chat={C}"))["chats"]
        assert [chat["id"] for chat in trashed] == [C]
        order, wholes = (
            await me.listed(),
            [await me.get("GET", f"/chats/{chat}") for chat in (A, B)],
        )
        assert await me.get("POST", "/import", reply.json()) == {
            "chats": 0, "messages": 0, "skipped": 2
        }  # fmt: skip
    with Store(tmp_path / "other.sqlite3") as other:
        async with somebody(llm, other) as me:
            assert await me.get("POST", "/import", reply.json()) == {
                "chats": 2, "messages": 6, "skipped": 0
            }  # fmt: skip
            assert await me.listed() == order
            assert [await me.get("GET", f"/chats/{chat}") for chat in (A, B)] == wholes
            assert await me.listed("query=深海") == order
            again = await me.ask("GET", "/export")
            assert again.json() == reply.json()


async def test_an_import_that_is_wrong_anywhere_adds_nothing(llm: LLM, store: Store):
    first = {"id": A, "parent": None, "role": "user", "content": "", "created": 1}
    for change, param in (
        ({"parent": B}, "chats.1.messages.0.parent"),
        ({"parent": A}, "chats.1.messages.0.parent"),
        ({"created": -1}, "chats.1.messages.0.created"),
        ({"id": "x"}, "chats.1.messages.0.id"),
        ({"role": "king"}, "chats.1.messages.0.role"),
    ):
        good = {"id": A, "created": 1, "updated": 2, "messages": [first]}
        bad = {**good, "id": B, "messages": [{**first, **change}]}
        async with somebody(llm, store) as me:
            body = {"format": "abyssal-history", "version": 1, "chats": [good, bad]}
            assert await me.refused("POST", "/import", body) == (400, "invalid_value", param)
            assert await me.listed() == []


async def test_imported_chats_do_not_come_from_the_future(llm: LLM, store: Store):
    async with somebody(llm, store) as me:
        chat = {"id": A, "created": 1, "updated": 2**53, "messages": []}
        body = {"format": "abyssal-history", "version": 1, "chats": [chat]}
        await me.get("POST", "/import", body)
        await me.get("PUT", f"/chats/{B}", {})
        await me.say(B, C)
        assert await me.listed() == [B, A]


async def test_an_import_may_be_larger_than_other_bodies_but_has_an_end(
    llm: LLM, store: Store, monkeypatch
):
    monkeypatch.setattr(routes, "MAX_IMPORT_BYTES", 20_000)
    async with serving(llm, history=store, max_body_bytes=2000) as client:
        me = Person(client.http)
        message = {"id": A, "role": "user", "content": "a" * 9000, "created": 1}
        chat = {"id": A, "created": 1, "updated": 1, "messages": [message]}
        body = {"format": "abyssal-history", "version": 1, "chats": [chat]}
        assert (await me.get("POST", "/import", body))["messages"] == 1
        body["chats"].append({**chat, "id": B, "title": "a" * 12_000})
        assert (await me.refused("POST", "/import", body))[0] == 413


async def test_a_chat_deleted_during_an_export_is_left_out(llm: LLM, store: Store):
    async with serving(llm, history=store) as client:
        me = Person(client.http)
        for chat in (A, B, C):
            await me.get("PUT", f"/chats/{chat}", {})
        pieces = routes.History(client.service).save("", [C, B, A], "json")
        texts = [await anext(pieces), await anext(pieces)]
        await me.get("DELETE", f"/chats/{B}?forever=true")
        texts += [text async for text in pieces]
        assert [chat["id"] for chat in json.loads("".join(texts))["chats"]] == [C, A]
