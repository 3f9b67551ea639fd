"""Chats and messages as rows of the history's tables: read, written, counted and made findable."""

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from abyssal.serve.faults import Fault, invalid
from abyssal.serve.words import words

MAX_CHAT_BYTES = 32 * 2**20  # one is answered whole, and imported whole
MAX_OWNER_BYTES = 4 * 2**30
ROW_BYTES = 256  # counted for each chat and message besides its texts

Object = dict[str, Any]


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def chat_of(row: sqlite3.Row) -> Object:
    """A chat as the API has it."""
    names = ("id", "title", "folder", "pinned", "options", "current")
    fields = {name: row[name] for name in (*names, "created", "updated", "deleted")}
    return {**fields, "pinned": bool(row["pinned"]), "options": json.loads(row["options"])}


def message_of(row: sqlite3.Row) -> Object:
    """A message as the API has it."""
    names = ("id", "parent", "role", "content", "reasoning", "data", "created")
    return {**{name: row[name] for name in names}, "data": json.loads(row["data"])}


def find(connection: sqlite3.Connection, owner: str, chat: str) -> sqlite3.Row | None:
    """The row of a chat, if this owner has it."""
    found = connection.execute("SELECT * FROM chats WHERE owner = ? AND id = ?", (owner, chat))
    row: sqlite3.Row | None = found.fetchone()
    return row


def needed(connection: sqlite3.Connection, owner: str, chat: str) -> sqlite3.Row:
    """The row of a chat; a Fault if this owner has none."""
    row = find(connection, owner, chat)
    if row is None:
        message = f"there is no chat {chat}; PUT /history/chats/{chat} makes it"
        raise Fault(404, message, param="chat", code="no_chat")
    return row


def number_of(connection: sqlite3.Connection, chat: int, message: str, param: str) -> int:
    """The number of a chat's message; a Fault that names param if it has none with this id."""
    asked = "SELECT number FROM messages WHERE chat = ? AND id = ?"
    row = connection.execute(asked, (chat, message)).fetchone()
    if row is None:
        reason = f"{param}={message} is no message of this chat; send that one first"
        raise invalid(reason, "openai", param=param)
    number: int = row["number"]
    return number


def insert(connection: sqlite3.Connection, owner: str, chat: Mapping[str, Any]) -> sqlite3.Row:
    """A new chat; its current message need not be there yet. A Fault if there is no room."""
    connection.execute("INSERT OR IGNORE INTO owners VALUES (?, 0, 0)", (owner,))
    values = {
        **chat,
        "owner": owner,
        "options": _json(chat["options"]),
        "moved": next_move(connection, owner),
    }
    number = connection.execute(
        """INSERT INTO chats
           (owner, id, title, folder, pinned, options, current, created, updated, deleted, moved,
            bytes)
           VALUES (:owner, :id, :title, :folder, :pinned, :options, :current, :created, :updated,
                   :deleted, :moved, 0)""",
        values,
    ).lastrowid
    assert number is not None
    _index(connection, "title_words", number, chat["title"])
    take_room(connection, owner, number, _chat_bytes(chat))
    return needed(connection, owner, chat["id"])


def update(connection: sqlite3.Connection, owner: str, row: sqlite3.Row, chat: Object) -> None:
    """Change a chat's row to these fields. A Fault if there is no room."""
    was_pinned = bool(row["pinned"])
    moved = row["moved"] if chat["pinned"] == was_pinned else next_move(connection, owner)
    connection.execute(
        "UPDATE chats SET title = ?, folder = ?, pinned = ?, options = ?, current = ?, moved = ? "
        "WHERE number = ?",
        (
            chat["title"], chat["folder"], chat["pinned"], _json(chat["options"]), chat["current"],
            moved, row["number"],
        ),
    )  # fmt: skip
    if chat["title"] != row["title"]:
        _index(connection, "title_words", row["number"], chat["title"])
    take_room(connection, owner, row["number"], _chat_bytes(chat) - _chat_bytes(chat_of(row)))


def insert_message(connection: sqlite3.Connection, owner: str, chat: int, message: Object) -> None:
    """A new message at the end of a chat. A Fault if there is no room."""
    values = {**message, "chat": chat, "data": _json(message["data"]), "bytes": _size(message)}
    number = connection.execute(
        """INSERT INTO messages (chat, id, parent, role, content, reasoning, data, created, bytes)
           VALUES (:chat, :id, :parent, :role, :content, :reasoning, :data, :created, :bytes)""",
        values,
    ).lastrowid
    assert number is not None
    _index(connection, "message_words", number, message["content"])
    take_room(connection, owner, chat, values["bytes"])


def replace_message(
    connection: sqlite3.Connection, owner: str, chat: int, old: sqlite3.Row, message: Object
) -> None:
    """Other words in the place of old ones. A Fault if there is no room."""
    values = {**message, "data": _json(message["data"]), "bytes": _size(message)}
    connection.execute(
        """UPDATE messages SET parent = :parent, role = :role, content = :content,
           reasoning = :reasoning, data = :data, bytes = :bytes WHERE number = :number""",
        {**values, "number": old["number"]},
    )
    _index(connection, "message_words", old["number"], message["content"])
    take_room(connection, owner, chat, values["bytes"] - old["bytes"])


def next_move(connection: sqlite3.Connection, owner: str) -> int:
    """The number of one more change of place in an owner's list."""
    asked = "UPDATE owners SET moves = moves + 1 WHERE owner = ? RETURNING moves"
    ((moves,),) = connection.execute(asked, (owner,)).fetchall()
    number: int = moves
    return number


def take_room(connection: sqlite3.Connection, owner: str, chat: int | None, num_bytes: int) -> None:
    """Count bytes for an owner, and a chat if it is named; a Fault where there is no room."""
    totals = []
    for table, key, value, most, of in (
        ("owners", "owner", owner, MAX_OWNER_BYTES, "history"),
        ("chats", "number", chat, MAX_CHAT_BYTES, "chat"),
    ):
        asked = f"UPDATE {table} SET bytes = bytes + ? WHERE {key} = ? RETURNING bytes"
        totals += [(row[0], most, of) for row in connection.execute(asked, (num_bytes, value))]
    for total, most, of in totals:
        if num_bytes > 0 and total > most:
            message = f"the {of} would have {total} bytes, at most {most} are kept"
            remedy = "begin another chat" if of == "chat" else "delete chats for good"
            raise Fault(413, f"{message}; {remedy}", code="history_full")


def _chat_bytes(chat: Mapping[str, Any]) -> int:
    texts = (chat["title"], chat["folder"] or "", _json(chat["options"]))
    return ROW_BYTES + sum(len(text.encode()) for text in texts)


def _size(message: Mapping[str, Any]) -> int:
    texts = (message["content"], message["reasoning"] or "", _json(message["data"]))
    return ROW_BYTES + sum(len(text.encode()) for text in texts)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _index(connection: sqlite3.Connection, table: str, number: int, text: str) -> None:
    """Make a text findable under a number, in place of what was there."""
    connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (number,))
    asked = f"INSERT INTO {table} (rowid, text) VALUES (?, ?)"
    connection.execute(asked, (number, " ".join(words(text))))
