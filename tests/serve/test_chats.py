"""The store against a dictionary that does the same, through any sequence of what may be done."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from abyssal.serve import chat_rows, chats
from abyssal.serve.faults import Fault
from abyssal.serve.store import Store
from abyssal.serve.store_schema import connect, migrate

OWNERS = st.sampled_from(["", "0a0a0a0a", "0b0b0b0b"])
IDS = st.sampled_from([f"{n:032x}" for n in range(5)])
MESSAGES = st.sampled_from([f"{n:032x}" for n in range(100, 106)])
TEXTS = st.lists(
    st.sampled_from(["sea", "seal", "deep", "深海", "深蓝", "بحر", "\0", "'\"; DROP TABLE chats"]),
    max_size=3,
).map(" ".join)
QUERIES = st.sampled_from(
    ["", "se", "sea", "seal", "deep", "深", "海", "深海", "بح", "sea deep", "drop"]
)
FOLDERS = st.sampled_from([None, "work", "play"])
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "title": TEXTS, "folder": FOLDERS, "pinned": st.booleans(), "current": MESSAGES | st.none(),
        "options": st.dictionaries(st.text(max_size=3), st.integers() | TEXTS, max_size=2),
    },
)  # fmt: skip


def has(word: str, text: str) -> bool:
    """Whether a text has a word of a query: the plain way."""
    if word.isascii() or word == "بح":
        return any(one.strip("'\";").lower().startswith(word) for one in text.split())
    return word in text


class Histories(RuleBasedStateMachine):
    """Three owners, who use the same few ids."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "h.sqlite3")
        self.store = Store(self.path)
        self.now = 1000
        self.moves = 0
        self.model: dict[str, dict[str, dict[str, Any]]] = {"": {}, "0a0a0a0a": {}, "0b0b0b0b": {}}
        self.clock = mock.patch.object(chat_rows, "now_ms", side_effect=lambda: self.now)
        self.clock.start()

    def teardown(self) -> None:
        self.clock.stop()
        self.store.close()
        self.folder.cleanup()

    def write(self, work: Any, *values: Any) -> Any:
        return self.store.write(lambda connection: work(connection, *values)).result()

    def read(self, work: Any, *values: Any) -> Any:
        return self.store.read(lambda connection: work(connection, *values)).result()

    def move(self) -> int:
        self.moves += 1
        return self.moves

    def refuse(self, status: int, work: Any, *values: Any) -> None:
        with pytest.raises(Fault) as refusal:
            self.write(work, *values)
        assert refusal.value.status == status

    @rule(ms=st.integers(-3, 3))
    def pass_time(self, ms: int) -> None:
        """A clock may also be set back."""
        self.now += ms

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store(self.path)

    @rule(owner=OWNERS, chat=IDS, changes=CHANGES)
    def put_chat(self, owner: str, chat: str, changes: dict[str, Any]) -> None:
        mine = self.model[owner]
        known = mine.get(chat, {"messages": {}})["messages"]
        if changes.get("current") is not None and changes["current"] not in known:
            self.refuse(400, chats.put_chat, owner, chat, changes)
            return
        if chat not in mine:
            new = {"title": "", "folder": None, "pinned": False, "options": {}, "current": None}
            times = {"created": self.now, "updated": self.now, "deleted": None}
            mine[chat] = {"id": chat, **new, **times, "messages": {}, "moved": self.move()}
        if changes.get("pinned", mine[chat]["pinned"]) != mine[chat]["pinned"]:
            mine[chat]["moved"] = self.move()
        mine[chat].update(changes)
        assert self.write(chats.put_chat, owner, chat, changes) == shown(mine[chat])
        assert self.write(chats.put_chat, owner, chat, changes) == shown(mine[chat])

    @rule(owner=OWNERS, chat=IDS, message=MESSAGES, parent=MESSAGES | st.none(), content=TEXTS)
    def put_message(
        self, owner: str, chat: str, message: str, parent: str | None, content: str
    ) -> None:
        fields = {
            "parent": parent,
            "role": "user",
            "content": content,
            "reasoning": None,
            "data": {},
        }
        asked = chats.put_message, owner, chat, message, fields
        if chat not in self.model[owner]:
            self.refuse(404, *asked)
            return
        mine = self.model[owner][chat]
        order = list(mine["messages"])
        before = order[: order.index(message)] if message in order else order
        if parent is not None and parent not in before:
            self.refuse(400, *asked)
            return
        old = mine["messages"].get(message, {"created": self.now})
        mine["messages"][message] = {"id": message, **fields, "created": old["created"]}
        updated = max(self.now, mine["updated"])
        mine.update(current=message, updated=updated, moved=self.move())
        assert self.write(*asked) == mine["messages"][message]

    @rule(owner=OWNERS, chat=IDS, what=st.sampled_from([chats.trash, chats.restore, chats.erase]))
    def delete(self, owner: str, chat: str, what: Any) -> None:
        mine = self.model[owner]
        if chat not in mine:
            self.refuse(404, what, owner, chat)
            return
        found = self.write(what, owner, chat)
        mine[chat]["deleted"] = None if what is chats.restore else mine[chat]["deleted"] or self.now
        assert found == shown(mine[chat])
        if what is chats.erase:
            del mine[chat]

    @rule(giver=OWNERS, owner=OWNERS, chat=IDS)
    def carry_over(self, giver: str, owner: str, chat: str) -> None:
        """One owner's chat is imported by another, under the same id."""
        if chat not in self.model[giver]:
            return
        whole = self.read(chats.get_chat, giver, chat)
        assert self.write(chats.add_whole, owner, whole) == (chat not in self.model[owner])
        if chat not in self.model[owner]:
            updated = min(whole["updated"], self.now)
            messages = {one["id"]: one for one in whole["messages"]}
            mine = {**whole, "messages": messages, "updated": updated, "moved": self.move()}
            self.model[owner][chat] = mine

    @rule(
        owner=OWNERS, query=QUERIES, folder=FOLDERS, deleted=st.booleans(), limit=st.integers(1, 3)
    )
    def list_chats(
        self, owner: str, query: str, folder: str | None, deleted: bool, limit: int
    ) -> None:
        listing = chats.Listing(query, folder or "", deleted, limit)
        pages = []
        while True:
            page = self.read(chats.list_chats, owner, listing)
            pages.append(page["data"])
            if page["next"] is None:
                break
            assert len(page["data"]) == limit
            listing = listing._replace(after=page["next"])
        found = [chat for page in pages for chat in page]
        for chat in found:
            chat.pop("snippet", None)
        expected = [
            chat
            for chat in ordered(self.model[owner])
            if (chat["deleted"] is not None) == deleted
            and folder in (None, chat["folder"])
            and matches(chat, query)
        ]
        assert found == [shown(chat) for chat in expected]

    @invariant()
    def everything_is_there(self) -> None:
        for owner, mine in self.model.items():
            for chat, known in mine.items():
                found = self.read(chats.get_chat, owner, chat)
                assert found == {**shown(known), "messages": list(known["messages"].values())}


def shown(chat: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chat.items() if name not in ("messages", "moved")}


def ordered(mine: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Pinned first, then the newest; of the same moment the one that moved last."""
    return sorted(
        mine.values(), key=lambda c: (c["pinned"], c["updated"], c["moved"]), reverse=True
    )


def matches(chat: dict[str, Any], query: str) -> bool:
    texts = [chat["title"], *(one["content"] for one in chat["messages"].values())]
    return all(any(has(word, text) for text in texts) for word in query.split())


@pytest.mark.slow
def test_the_store_does_what_a_dictionary_would():
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=20, stateful_step_count=30, suppress_health_check=list(HealthCheck)
        ),
    )


class Listings(RuleBasedStateMachine):
    """A long list is read page by page while chats change."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = connect(Path(":memory:"), timeout_s=1)
        migrate(self.connection)

    def teardown(self) -> None:
        self.connection.close()

    def do(self, work: Any, *values: Any) -> Any:
        return work(self.connection, "", *values)

    @initialize(pinned=st.sets(st.integers(0, 11)))
    def begin(self, pinned: set[int]) -> None:
        self.ids = [f"{n:032x}" for n in range(12)]
        for place, chat in enumerate(self.ids):
            self.do(chats.put_chat, chat, {"pinned": place in pinned})
        self.moved: set[str] = set()
        self.gone: set[str] = set()
        self.seen: list[str] = []
        self.after: str | None = ""

    @rule(limit=st.integers(1, 4))
    def next_page(self, limit: int) -> None:
        if self.after is None:
            return
        page = self.do(chats.list_chats, chats.Listing(limit=limit, after=self.after))
        self.seen += [chat["id"] for chat in page["data"]]
        self.after = page["next"]

    @precondition(lambda self: self.after)  # while a listing is under way
    @rule(chat=st.integers(0, 15), pinned=st.booleans(), gone=st.booleans(), says=st.booleans())
    def change(self, chat: int, pinned: bool, gone: bool, says: bool) -> None:
        name = f"{chat:032x}"
        self.do(chats.put_chat, name, {"pinned": pinned, "title": "renamed"})
        self.do(chats.trash if gone else chats.restore, name)
        (self.gone.add if gone else self.gone.discard)(name)
        self.moved.add(name)
        if says:
            fields = {"parent": None, "role": "user", "content": "", "reasoning": None, "data": {}}
            self.do(chats.put_message, name, "f" * 32, fields)

    @invariant()
    def nothing_twice_and_nothing_missed(self) -> None:
        assert len(set(self.seen)) == len(self.seen)
        if self.after is None:
            assert set(self.ids) - self.moved <= set(self.seen)


def test_pages_stay_right_while_chats_change():
    run_state_machine_as_test(Listings, settings=settings(max_examples=30, stateful_step_count=30))


def write(store: Store, work: Any, *values: Any) -> Any:
    """What work returns for the owner of no name."""
    return store.write(lambda connection: work(connection, "", *values)).result()


def test_a_pinned_chat_that_was_listed_and_is_let_go_does_not_come_again(store: Store):
    do = partial(write, store)
    for place in range(4):
        do(chats.put_chat, f"{place:032x}", {"pinned": place > 1})
    first = do(chats.list_chats, chats.Listing(limit=1))
    (seen,) = [chat["id"] for chat in first["data"]]
    do(chats.put_chat, seen, {"pinned": False})
    rest = do(chats.list_chats, chats.Listing(after=first["next"]))
    assert [chat["id"] for chat in rest["data"]] == [f"{n:032x}" for n in (2, 1, 0)]


def test_a_chat_that_was_only_renamed_keeps_its_place_in_a_listing(store: Store):
    do = partial(write, store)
    for place in range(4):
        do(chats.put_chat, f"{place:032x}", {})
    first = do(chats.list_chats, chats.Listing(limit=2))
    do(chats.put_chat, f"{0:032x}", {"title": "renamed", "folder": "x"})
    rest = do(chats.list_chats, chats.Listing(limit=2, after=first["next"]))
    assert [chat["title"] for chat in rest["data"]] == ["", "renamed"]


def test_a_snippet_is_of_the_message_that_matches_best(store: Store):
    write(store, chats.put_chat, "a" * 32, {"title": "fish"})
    for place, text in enumerate(["a whale", "the sea is deep", "the land"]):
        fields = {"parent": None, "role": "user", "content": text, "reasoning": None, "data": {}}
        write(store, chats.put_message, "a" * 32, f"{place:032x}", fields)
    for query, expected in (
        ("deep sea", "the sea is deep"),
        ("fish", None),
        ("whale fish", "a whale"),
    ):
        listed = partial(chats.list_chats, owner="", listing=chats.Listing(query=query))
        (found,) = store.read(listed).result()["data"]
        assert found.get("snippet") == expected
