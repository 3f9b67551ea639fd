"""Chats out of the history and into it: JSON that another server takes in, Markdown for people."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from abyssal.serve.chat_rows import Object

FORMAT, VERSION = "abyssal-history", 1  # of an export

# The JSON of an export around its chats, which are written one after another.
HEAD = f'{{"format": "{FORMAT}", "version": {VERSION}, "chats": ['
TAIL = "\n]}\n"


def file_name(chat: str, ending: str) -> str:
    """What a browser calls a download, of all chats or (by its id) one."""
    day = datetime.now(UTC).date().isoformat()
    return f"abyssal-chat-{chat[:8]}.{ending}" if chat else f"abyssal-chats-{day}.{ending}"


def json_of(chat: Object, *, is_first: bool) -> str:
    """A chat among those of an export."""
    return ("\n" if is_first else ",\n") + json.dumps(chat, ensure_ascii=False)


def markdown_of(chat: Object, *, is_first: bool) -> str:
    """A chat as a text to read: the branch that is shown, with its thoughts as quotations."""
    title = " ".join(chat["title"].split()) or "Chat"
    facts = [_day(chat["created"]), *([f"folder {chat['folder']}"] if chat["folder"] else [])]
    parts = [f"# {title}", f"*{', '.join(' '.join(fact.split()) for fact in facts)}*"]
    system = chat["options"].get("system")
    if system and isinstance(system, str):
        parts += ["## System", system]
    for message in branch(chat["messages"], chat["current"]):
        parts += _message(message)
    return ("" if is_first else "\n---\n\n") + "\n\n".join(parts) + "\n"


def branch(messages: Sequence[Object], current: str | None) -> list[Object]:
    """The messages from the first one to the current one (or the last one made)."""
    by_id = {message["id"]: message for message in messages}
    place = current or (messages[-1]["id"] if messages else None)
    found: list[Object] = []
    while place is not None:
        found.append(by_id[place])
        place = by_id[place]["parent"]
    return found[::-1]


def _message(message: Mapping[str, Any]) -> list[str]:
    parts = [f"## {message['role'].capitalize()}"]
    if message["reasoning"]:
        parts.append("\n".join(f"> {line}".rstrip() for line in message["reasoning"].split("\n")))
    if message["content"]:
        parts.append(message["content"])
    # What a client keeps in data is its own business; these are the fields of our page.
    attachments = message["data"].get("attachments")
    for file in attachments if isinstance(attachments, list) else ():
        if isinstance(file, dict) and isinstance(file.get("text"), str):
            parts += [f"Attached: {file.get('name')}", _fenced(file["text"], "")]
    if calls := message["data"].get("tool_calls"):
        parts.append(_fenced(json.dumps(calls, ensure_ascii=False, indent=2), "json"))
    return parts


def _fenced(text: str, language: str) -> str:
    """Text as it is, between fences that are longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _day(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError):  # an import may have any time
        return f"{time_ms} ms since 1970"
