"""What is done to chats: every function works for one owner inside a transaction of the store.

A message's parent was made before it, so that a chat is a tree. Chats are listed by pinned, the
time of the last message, and ``moved``, which counts the owner's changes of these two: a cursor
holds the place of the last chat of a page and the count when the listing began, and later pages
leave out what moved since. So no chat is listed twice, and none that stays in its place is missed.
"""

import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from abyssal.serve import chat_rows as rows
from abyssal.serve.chat_rows import Object
from abyssal.serve.faults import invalid
from abyssal.serve.words import MAX_TERMS, snippet, terms


class Listing(NamedTuple):
    """Which chats to list, and from where on."""

    query: str = ""
    folder: str = ""  # "": all
    deleted: bool = False
    limit: int = 50
    after: str = ""  # a cursor; "": from the beginning


def put_chat(connection: sqlite3.Connection, owner: str, chat: str, changes: Object) -> Object:
    """Make a chat or change the fields named; returns it.

    Raises:
        Fault: current is no message of it, or there is no more room.
    """
    row = rows.find(connection, owner, chat)
    if row is None:
        new: Object = {"title": "", "folder": None, "pinned": False, "options": {}, "current": None}
        now = rows.now_ms()
        times = {"created": now, "updated": now, "deleted": None}
        row = rows.insert(connection, owner, {"id": chat, **new, **times})
    fields = {**rows.chat_of(row), **changes}
    if fields["current"] is not None:
        rows.number_of(connection, row["number"], fields["current"], "current")
    rows.update(connection, owner, row, fields)
    return fields


def put_message(
    connection: sqlite3.Connection, owner: str, chat: str, message: str, fields: Object
) -> Object:
    """Make or replace a message (parent, role, content, reasoning, data); returns it.

    Raises:
        Fault: there is no such chat, the parent is none that was made earlier, or there is no room.
    """
    row = rows.needed(connection, owner, chat)
    asked = "SELECT number, created, bytes FROM messages WHERE chat = ? AND id = ?"
    old = connection.execute(asked, (row["number"], message)).fetchone()
    if fields["parent"] is not None:
        parent = rows.number_of(connection, row["number"], fields["parent"], "parent")
        if old is not None and parent >= old["number"]:
            reason = "parent is this message or a later one; name one made before it"
            raise invalid(reason, "openai", param="parent")
    now = rows.now_ms()
    made = {"id": message, **fields, "created": old["created"] if old else now}
    if old is None:
        rows.insert_message(connection, owner, row["number"], made)
    else:
        rows.replace_message(connection, owner, row["number"], old, made)
    connection.execute(
        "UPDATE chats SET current = ?, updated = max(updated, ?), moved = ? WHERE number = ?",
        (message, now, rows.next_move(connection, owner), row["number"]),
    )
    return made


def get_chat(connection: sqlite3.Connection, owner: str, chat: str) -> Object:
    """A chat with all its messages, in the order made; a Fault if there is none."""
    row = rows.needed(connection, owner, chat)
    asked = "SELECT * FROM messages WHERE chat = ? ORDER BY number"
    found = connection.execute(asked, (row["number"],))
    return {**rows.chat_of(row), "messages": [rows.message_of(one) for one in found]}


def list_chats(connection: sqlite3.Connection, owner: str, listing: Listing) -> Object:
    """{"data": chats, "next": cursor or None}: pinned ones first, then the newest.

    Raises:
        Fault: the cursor is none, or the query has too many words.
    """
    asked = terms(listing.query)
    if len(asked) > MAX_TERMS:
        reason = f"query has {len(asked)} words, at most {MAX_TERMS} are searched for"
        raise invalid(reason, "openai", param="query")
    if listing.query.strip() and not asked:
        return {"data": [], "next": None}  # signs alone are in no index
    where = ["owner = ?", f"deleted IS {'NOT' if listing.deleted else ''} NULL"]
    values: list[str | int] = [owner]
    if listing.folder:
        where, values = [*where, "folder = ?"], [*values, listing.folder]
    for term in asked:
        where, values = [*where, _HAS_TERM], [*values, term, term]
    if listing.after:
        since, *place = _read_cursor(listing.after)
        where.append("moved <= ? AND (pinned, updated, moved) < (?, ?, ?)")
        values += [since, *place]
    else:
        (since,) = connection.execute(
            "SELECT coalesce(max(moves), 0) FROM owners WHERE owner = ?", (owner,)
        ).fetchone()
    found = connection.execute(
        f"SELECT * FROM chats WHERE {' AND '.join(where)} "
        "ORDER BY pinned DESC, updated DESC, moved DESC LIMIT ?",
        (*values, listing.limit + 1),
    ).fetchall()
    page = found[: listing.limit]
    snippets = _snippets(connection, page, asked)
    data = [{**rows.chat_of(row), **snippets.get(row["number"], {})} for row in page]
    return {"data": data, "next": _cursor(since, page[-1]) if len(found) > len(page) else None}


def trash(connection: sqlite3.Connection, owner: str, chat: str) -> Object:
    """Put a chat into the trash; returns it, or raises a Fault if there is none."""
    return _set_deleted(connection, owner, chat, rows.now_ms())


def restore(connection: sqlite3.Connection, owner: str, chat: str) -> Object:
    """Take a chat out of the trash; returns it, or raises a Fault if there is none."""
    return _set_deleted(connection, owner, chat, None)


def erase(connection: sqlite3.Connection, owner: str, chat: str) -> Object:
    """Delete a chat for good; returns what it was, or raises a Fault if there is none."""
    row = rows.needed(connection, owner, chat)
    number = (row["number"],)
    connection.execute(
        "DELETE FROM message_words WHERE rowid IN (SELECT number FROM messages WHERE chat = ?)",
        number,
    )
    connection.execute("DELETE FROM title_words WHERE rowid = ?", number)
    connection.execute("DELETE FROM chats WHERE number = ?", number)
    rows.take_room(connection, owner, None, -row["bytes"])
    return {**rows.chat_of(row), "deleted": row["deleted"] or rows.now_ms()}


def add_whole(connection: sqlite3.Connection, owner: str, chat: Mapping[str, Any]) -> bool:
    """Add a chat with its messages, as get_chat has them, unless its id is there already.

    Raises:
        Fault: there is no more room.
    """
    if rows.find(connection, owner, chat["id"]) is not None:
        return False
    now = rows.now_ms()
    row = rows.insert(connection, owner, {**chat, "updated": min(chat["updated"], now)})
    for message in chat["messages"]:
        rows.insert_message(connection, owner, row["number"], message)
    return True


def ids(connection: sqlite3.Connection, owner: str) -> list[str]:
    """The ids of all chats that are not in the trash, as they are listed."""
    found = connection.execute(
        "SELECT id FROM chats WHERE owner = ? AND deleted IS NULL "
        "ORDER BY pinned DESC, updated DESC, moved DESC",
        (owner,),
    )
    return [row["id"] for row in found]


# A chat has a term if its title or one of its messages has.
_HAS_TERM = """(number IN (SELECT rowid FROM title_words WHERE title_words MATCH ?)
    OR number IN (SELECT chat FROM message_words JOIN messages ON number = message_words.rowid
                  WHERE message_words MATCH ?))"""

_CURSOR = re.compile(r"(\d{1,18})-([01])-(\d{1,18})-(\d{1,18})", re.ASCII)


def _cursor(since: int, last: sqlite3.Row) -> str:
    return f"{since}-{last['pinned']}-{last['updated']}-{last['moved']}"


def _read_cursor(after: str) -> list[int]:
    found = _CURSOR.fullmatch(after)
    if found is None:
        reason = "after is no cursor; give the next of the page before, or leave it out"
        raise invalid(reason, "openai", param="after")
    return [int(part) for part in found.groups()]


def _snippets(
    connection: sqlite3.Connection, page: Sequence[sqlite3.Row], asked: Sequence[str]
) -> dict[int, Object]:
    """{"snippet": text} for each of some chats in whose messages a term is found."""
    if not asked or not page:
        return {}
    numbers = [row["number"] for row in page]
    found = connection.execute(
        "SELECT chat, content, min(message_words.rank) FROM message_words "
        "JOIN messages ON number = message_words.rowid WHERE message_words MATCH ? "
        f"AND chat IN ({', '.join('?' * len(numbers))}) GROUP BY chat",
        (" OR ".join(asked), *numbers),
    )
    return {row["chat"]: {"snippet": snippet(row["content"], asked)} for row in found}


def _set_deleted(
    connection: sqlite3.Connection, owner: str, chat: str, deleted: int | None
) -> Object:
    row = rows.needed(connection, owner, chat)
    if deleted is not None and row["deleted"] is not None:
        deleted = row["deleted"]  # it has been in the trash since then
    connection.execute("UPDATE chats SET deleted = ? WHERE number = ?", (deleted, row["number"]))
    return {**rows.chat_of(row), "deleted": deleted}
