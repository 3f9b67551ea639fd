"""The values in the queries of the history's routes, which come as texts: read, and described.

An empty one was left out, as pages send it.
"""

import re
from collections.abc import Mapping
from typing import Any

from abyssal.serve.chats import Listing
from abyssal.serve.faults import invalid, quote
from abyssal.serve.history_schema import ID

MAX_PAGE = 200  # chats in one answer
KINDS = {"json": ("application/json", "json"), "markdown": ("text/markdown", "md")}


def kind_of(values: Mapping[str, str]) -> str:
    """What an export shall be; a Fault if it cannot."""
    kind = values.get("format") or "json"
    if kind not in KINDS:
        reason = f"format={quote(kind)}, expected json or markdown"
        raise invalid(reason, "openai", param="format")
    return kind


def id_of(value: str, param: str) -> str:
    """An id from a path or a query; a Fault if it is none."""
    if not re.fullmatch(ID, value, re.ASCII):
        reason = f"{param}={quote(value)}, expected 32 hexadecimal digits in lower case"
        raise invalid(reason, "openai", param=param)
    return value


def flag(values: Mapping[str, str], name: str) -> bool:
    """A true or a false; a Fault if it is neither."""
    value = values.get(name, "")
    if value not in ("", "true", "false"):
        reason = f"{name}={quote(value)}, expected true or false"
        raise invalid(reason, "openai", param=name)
    return value == "true"


def listing(values: Mapping[str, str]) -> Listing:
    """Which chats a query asks for; a Fault if a value cannot be."""
    limit = values.get("limit") or "50"
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MAX_PAGE:
        reason = f"limit={quote(limit)}, expected an integer from 1 to {MAX_PAGE}"
        raise invalid(reason, "openai", param="limit")
    return Listing(
        query=values.get("query", ""),
        folder=values.get("folder", ""),
        deleted=flag(values, "deleted"),
        limit=int(limit),
        after=values.get("after", ""),
    )


def _parameter(name: str, tells: str, **schema: Any) -> dict[str, Any]:
    """A value of a query, for the description."""
    return {"name": name, "in": "query", "description": tells, "schema": schema}


_BOOLEAN = {"type": "boolean", "default": False}
FOREVER = _parameter("forever", "For good, not into the trash.", **_BOOLEAN)
LISTING = [
    _parameter("query", "Words, or beginnings of words, in titles and messages.", type="string"),
    _parameter("folder", "Only chats in this folder.", type="string"),
    _parameter("deleted", "The trash in place of the rest.", **_BOOLEAN),
    _parameter(
        "limit", "The most chats to give.", type="integer", minimum=1, maximum=MAX_PAGE, default=50
    ),
    _parameter("after", "The next of the page before.", type="string"),
]
ONE = _parameter("chat", "The id of one chat; without it, all.", type="string", pattern=ID)
FORMAT = _parameter("format", "What to write.", enum=list(KINDS), default="json")
