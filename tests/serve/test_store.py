"""What was answered is there, whoever else writes, and one who fails takes nobody along."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from abyssal.serve import chat_rows, chats
from abyssal.serve.faults import Fault
from abyssal.serve.store import MAX_GROUP, NUM_READERS, Store

A = "a" * 32
WORDS = {"parent": None, "role": "user", "content": "the sea", "reasoning": None, "data": {}}


def put(connection, chat, message):
    return chats.put_message(connection, "", chat, message, WORDS)


def message_ids(connection):
    return {(row["chat"], row["id"]) for row in connection.execute("SELECT chat, id FROM messages")}


def test_thirty_two_writers_in_two_stores_of_one_file_are_never_told_it_is_locked(tmp_path):
    path, each = tmp_path / "h.sqlite3", 12
    with Store(path) as first, Store(path) as second, ThreadPoolExecutor(32) as pool:

        def write(number: int) -> None:
            store, chat = (first, second)[number % 2], f"{number:032x}"
            store.write(lambda c: chats.put_chat(c, "", chat, {})).result()
            for place in range(each):
                store.write(partial(put, chat=chat, message=f"{place:032x}")).result()
                seen = store.read(lambda c: chats.get_chat(c, "", chat)).result()
                assert len(seen["messages"]) == place + 1  # one's own words are there at once

        for done in [pool.submit(write, number) for number in range(32)]:
            done.result()
        assert len(first.read(message_ids).result()) == 32 * each
        assert first.read(_integrity).result() == "ok"


def _integrity(connection):
    return connection.execute("PRAGMA integrity_check").fetchone()[0]


def test_writes_that_wait_together_are_committed_together_and_fail_alone(store: Store):
    gate, begun = threading.Event(), threading.Event()
    commits = []

    def hold(connection):
        begun.set()
        gate.wait()

    def fail(kind, connection):
        chats.put_chat(connection, "", "f" * 32, {})  # must leave no trace
        raise kind("no")

    def full(connection):
        raise sqlite3.OperationalError("database or disk is full")

    first = store.write(hold)
    begun.wait()
    store._writer.set_trace_callback(lambda sql: commits.append(sql) if "COMMIT" in sql else None)
    good = [
        store.write(partial(chats.put_chat, owner="", chat=f"{n:032x}", changes={}))
        for n in range(20)
    ]
    bad = store.write(partial(fail, lambda why: Fault(400, why)))
    bug = store.write(partial(fail, KeyError))
    gate.set()
    first.result()
    assert [one.result()["title"] for one in good] == [""] * 20
    assert len(commits) == 2  # of the first, and of all others
    with pytest.raises(Fault, match="no"):
        bad.result()
    with pytest.raises(KeyError):
        bug.result()
    good = [store.write(partial(chats.put_chat, owner="", chat=A, changes={})) for _ in range(3)]
    with pytest.raises(Fault) as refusal:
        store.write(full).result()
    assert refusal.value.status == 503
    assert "disk" not in refusal.value.message
    assert [one.result()["id"] for one in good] == [A] * 3
    assert len(store.read(partial(chats.ids, owner="")).result()) == 21


def test_nobody_is_answered_before_the_commit_is_over(store: Store):
    gate = threading.Event()
    store.write(lambda connection: gate.wait())
    jobs = [
        store.write(partial(chats.put_chat, owner="", chat=f"{n:032x}", changes={}))
        for n in range(9)
    ]
    seen: list[tuple[str, list[bool]]] = []
    honest = store._writer

    class Watched:
        """The connection, and who had been answered after each of its statements."""

        in_transaction = property(lambda self: honest.in_transaction)

        def execute(self, sql: str, values: tuple = ()) -> sqlite3.Cursor:
            found = honest.execute(sql, values)
            seen.append((sql, [job.done() for job in jobs]))
            return found

    store._writer = Watched()
    try:
        gate.set()
        for job in jobs:
            job.result()
    finally:
        store._writer = honest
    commits = [place for place, (sql, _) in enumerate(seen) if sql == "COMMIT"]
    assert not any(any(answered) for _, answered in seen[: commits[-1] + 1])


def test_a_write_nobody_waits_for_any_more_is_not_done(store: Store):
    gate = threading.Event()
    store.write(lambda connection: gate.wait())
    left = store.write(partial(chats.put_chat, owner="", chat=A, changes={}))
    assert left.cancel()
    gate.set()
    assert store.read(partial(chats.ids, owner="")).result() == []
    store.write(lambda connection: None).result()
    assert store.read(partial(chats.ids, owner="")).result() == []


def test_closing_carries_out_what_waits_and_takes_nothing_more(tmp_path):
    path = tmp_path / "h.sqlite3"
    store = Store(path)
    done = [
        store.write(partial(chats.put_chat, owner="", chat=f"{n:032x}", changes={}))
        for n in range(MAX_GROUP * 2)
    ]
    store.close()
    store.close()
    assert all(one.result()["id"] for one in done)
    for ask in (store.write, store.read):
        with pytest.raises(Fault) as refusal:
            ask(partial(chats.ids, owner=""))
        assert refusal.value.code == "shutting_down"
    with Store(path) as again:
        assert len(again.read(partial(chats.ids, owner="")).result()) == len(done)


def test_a_reader_sees_one_moment_and_cannot_write(store: Store):
    begun, gate = threading.Event(), threading.Event()

    def look(connection):
        before = chats.ids(connection, "")
        begun.set()
        gate.wait()
        return before, chats.ids(connection, "")

    seen = store.read(look)
    begun.wait()
    store.write(partial(chats.put_chat, owner="", chat=A, changes={})).result()
    gate.set()
    assert seen.result() == ([], [])
    with pytest.raises(Fault) as refusal:
        store.read(partial(chats.put_chat, owner="", chat=A, changes={})).result()
    assert refusal.value.code == "history_unavailable"


def test_a_read_without_end_is_ended_and_the_next_one_goes_on(store: Store, monkeypatch):
    monkeypatch.setattr("abyssal.serve.store.READ_S", 0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    for _ in range(NUM_READERS + 1):
        with pytest.raises(Fault) as refusal:
            store.read(lambda connection: connection.execute(endless).fetchone()).result()
        assert (refusal.value.status, refusal.value.code) == (400, "query_too_broad")
    assert store.read(partial(chats.ids, owner="")).result() == []


def test_an_owner_and_a_chat_have_an_end_and_deleting_makes_room(store: Store, monkeypatch):
    monkeypatch.setattr(chat_rows, "MAX_CHAT_BYTES", 5_000)
    monkeypatch.setattr(chat_rows, "MAX_OWNER_BYTES", 8_000)

    def say(chat: str, message: str, size: int) -> dict:
        fields = {**WORDS, "content": "a" * size}
        work = partial(chats.put_message, owner="", chat=chat, message=message, fields=fields)
        return store.write(work).result()

    for chat in (A, "b" * 32):
        store.write(partial(chats.put_chat, owner="", chat=chat, changes={})).result()
    say(A, A, 4000)
    with pytest.raises(Fault, match="the chat would have") as refusal:
        say(A, "b" * 32, 1000)
    assert (refusal.value.status, refusal.value.code) == (413, "history_full")
    with pytest.raises(Fault, match="the history would have"):
        say("b" * 32, A, 4000)
    say(A, A, 10)  # replaced: what it had is free
    say("b" * 32, A, 4000)
    for chat in (A, "b" * 32):
        store.write(partial(chats.erase, owner="", chat=chat)).result()
    assert store.read(_bytes).result() == [0]


def _bytes(connection):
    return [row[0] for row in connection.execute("SELECT bytes FROM owners")]
