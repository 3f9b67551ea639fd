"""What the history's routes take and answer: chats, and the messages in them.

Null means that a field was left out, except where it is a value: no folder, no parent, no current
message.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from abyssal.serve.faults import quote
from abyssal.serve.fields import Body, refuse

MAX_TITLE = 1000  # characters
MAX_FOLDER = 200  # characters
MAX_TEXT = 4 * 2**20  # characters of one message, and of its thoughts
MAX_OPTIONS_BYTES = 2**18  # as JSON
MAX_DATA_BYTES = 4 * 2**20  # as JSON
MAX_TIME_MS = 2**53  # what every JSON reader reads exactly

ID = r"^[0-9a-f]{32}$"


def _check_id(value: str) -> str:
    if len(value) != 32 or not set(value) <= set("0123456789abcdef"):
        refuse(f"={quote(value)}, expected 32 hexadecimal digits in lower case")
    return value


def _check_options(value: dict[str, object]) -> dict[str, object]:
    return _bounded(value, MAX_OPTIONS_BYTES)


def _check_data(value: dict[str, object]) -> dict[str, object]:
    return _bounded(value, MAX_DATA_BYTES)


def _bounded(value: dict[str, object], most: int) -> dict[str, object]:
    size = len(json.dumps(value, ensure_ascii=False).encode())
    if size > most:
        refuse(f" has {size} bytes of JSON, at most {most} are kept; send less")
    return value


Id = Annotated[str, AfterValidator(_check_id), Field(json_schema_extra={"pattern": ID})]
Title = Annotated[str, Field(max_length=MAX_TITLE)]
Folder = Annotated[str, Field(min_length=1, max_length=MAX_FOLDER)]
Options = Annotated[dict[str, object], AfterValidator(_check_options)]
Data = Annotated[dict[str, object], AfterValidator(_check_data)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Time = Annotated[int, Field(ge=0, le=MAX_TIME_MS)]
Role = Literal["system", "user", "assistant", "tool"]


class ChatChange(Body):
    """PUT /history/chats/{chat}: what is named is set; a chat that is not there yet is made."""

    title: Title | None = None
    folder: Folder | None = None  # null: in none
    pinned: bool | None = None
    options: Options | None = None  # such as {"system": "Be brief.", "temperature": 0.6}
    current: Id | None = None  # the last message of the branch that is shown

    def changes(self) -> dict[str, Any]:
        """The fields to set."""
        named = self.model_dump(exclude_unset=True)
        may_be_null = ("folder", "current")
        return {k: v for k, v in named.items() if v is not None or k in may_be_null}


class MessageChange(Body):
    """PUT /history/chats/{chat}/messages/{message}: the message as it shall be."""

    parent: Id | None  # the message it answers; null: it begins the chat
    role: Role
    content: Text
    reasoning: Text | None = None
    data: Data | None = None  # whatever the client wants to know again

    def fields(self) -> dict[str, Any]:
        """What is kept."""
        return {**self.model_dump(), "data": self.data or {}}


class SavedMessage(Body):
    """A message in an export."""

    id: Id
    parent: Id | None = None
    role: Role
    content: Text
    reasoning: Text | None = None
    data: Data = Field(default_factory=dict)
    created: Time


class SavedChat(Body):
    """A chat in an export."""

    id: Id
    title: Title = ""
    folder: Folder | None = None
    pinned: bool = False
    options: Options = Field(default_factory=dict)
    current: Id | None = None
    created: Time
    updated: Time
    deleted: Time | None = None
    messages: list[SavedMessage]

    @model_validator(mode="after")
    def _check_tree(self) -> Self:
        seen: set[str] = set()
        for place, message in enumerate(self.messages):
            if message.id in seen:
                refuse(f"={message.id} is there twice", f".messages.{place}.id")
            if message.parent is not None and message.parent not in seen:
                refuse(f"={message.parent} is no message before it", f".messages.{place}.parent")
            seen.add(message.id)
        if self.current is not None and self.current not in seen:
            refuse(f"={self.current} is no message of this chat", ".current")
        return self


class SavedHistory(Body):
    """An export: POST /history/import takes what GET /history/export?format=json gives."""

    format: Literal["abyssal-history"]
    version: Literal[1]
    chats: list[SavedChat]


# Answers


class Chat(BaseModel):
    """A chat, without its messages. Times are milliseconds since 1970."""

    id: str
    title: str
    folder: str | None
    pinned: bool
    options: dict[str, Any]
    current: str | None
    created: int
    updated: int  # when its last message came
    deleted: int | None  # since when it is in the trash


class Message(BaseModel):
    """A message of a chat."""

    id: str
    parent: str | None
    role: Role
    content: str
    reasoning: str | None
    data: dict[str, Any]
    created: int


class WholeChat(Chat):
    """A chat with its messages of all branches, in the order made."""

    messages: list[Message]


class ListedChat(Chat):
    """A chat in a list; snippet is the part of a message that a query found."""

    snippet: str | None = None


class ChatList(BaseModel):
    """A page of chats, and the cursor of the next one."""

    data: list[ListedChat]
    next: str | None


class Imported(BaseModel):
    """What an import added, and how many chats were there already."""

    chats: int
    messages: int
    skipped: int
