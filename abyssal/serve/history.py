"""The routes of the history: chats that the server keeps, for each key its own.

An answer of 200 to a change means that it is on the disk. Where no history is kept, all of them
answer 404 with the code ``no_history``.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from sqlite3 import Connection
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from abyssal.serve import chat_rows as rows
from abyssal.serve import chats, transfer
from abyssal.serve.body import read_json
from abyssal.serve.chat_rows import Object
from abyssal.serve.description import told
from abyssal.serve.faults import Fault
from abyssal.serve.fields import Body
from abyssal.serve.history_query import (
    FOREVER,
    FORMAT,
    KINDS,
    LISTING,
    ONE,
    flag,
    id_of,
    kind_of,
    listing,
)
from abyssal.serve.history_schema import (
    Chat,
    ChatChange,
    ChatList,
    Imported,
    Message,
    MessageChange,
    SavedHistory,
    WholeChat,
)
from abyssal.serve.schema import parse
from abyssal.serve.service import Service
from abyssal.serve.store import Store

MAX_IMPORT_BYTES = 64 * 2**20
MAX_IMPORT_VALUES = 2**23  # numbers, texts and so on in one import
IMPORT_TIMEOUT_S = 120.0  # until the whole of it has come
_IMPORT_DEPTH = 5  # an export has the data of a message inside so many objects and lists more

B = TypeVar("B", bound=Body)


class History:
    """What the routes share: a service's store, asked in the name of a request's owner."""

    def __init__(self, service: Service):
        self.service = service
        self._importing = asyncio.Lock()  # one at a time: each may take much memory
        settings = service.settings
        self._import_settings = replace(
            settings,
            max_body_bytes=max(MAX_IMPORT_BYTES, settings.max_body_bytes),
            max_depth=min(256, settings.max_depth + _IMPORT_DEPTH),
            max_values=max(MAX_IMPORT_VALUES, settings.max_values),
            body_timeout_s=max(IMPORT_TIMEOUT_S, settings.body_timeout_s),
        )

    @property
    def store(self) -> Store:
        """The store, or a Fault where there is none."""
        if self.service.history is None:
            message = (
                "this server keeps no history; keep chats yourself, or start it with --history FILE"
            )
            raise Fault(404, message, code="no_history")
        return self.service.history

    async def read(self, request: Request, schema: type[B]) -> B:
        """The body of a request, where there is a history to keep it in."""
        _ = self.store
        return await self.service.read(request, schema)

    async def change(
        self, request: Request, work: Callable[..., Object], *values: object
    ) -> Response:
        """The answer to a change, once it is on the disk."""
        owner = request.state.owner
        done = self.store.write(lambda connection: work(connection, owner, *values))
        # A long text is made JSON beside the event loop, so that others' streams go on.
        return await self.service.beside(partial(_json, await asyncio.wrap_future(done)))

    async def look(
        self, request: Request, work: Callable[..., Object], *values: object
    ) -> Response:
        """What is there."""
        owner = request.state.owner
        found = self.store.read(lambda connection: _json(work(connection, owner, *values)))
        return await asyncio.wrap_future(found)

    async def load(self, request: Request) -> Imported:
        """Add the chats of an export whose ids are not there yet."""
        store, owner = self.store, request.state.owner
        async with self._importing:
            body = await read_json(request.scope, request.receive, self._import_settings)
            saved = await asyncio.to_thread(
                parse, SavedHistory, body, "openai", self._import_settings
            )
            whole = [chat.model_dump() for chat in reversed(saved.chats)]  # the newest come first
            del body, saved
            results: list[bool] = []
            for chat in whole:  # one by one, so that others' writes get their turn between them
                results.append(await asyncio.wrap_future(store.write(partial(_add, owner, chat))))
        added = [len(chat["messages"]) for chat, new in zip(whole, results, strict=True) if new]
        return Imported(chats=len(added), messages=sum(added), skipped=len(whole) - len(added))

    async def save(self, owner: str, chosen: list[str], kind: str) -> AsyncIterator[str]:
        """The pieces of an export, chat by chat."""
        write = transfer.json_of if kind == "json" else transfer.markdown_of
        if kind == "json":
            yield transfer.HEAD
        is_first = True
        for chat in chosen:
            work = partial(_written, write, owner, chat, is_first)
            text = await asyncio.wrap_future(self.store.read(work))
            if text is not None:
                yield text
                is_first = False
        if kind == "json":
            yield transfer.TAIL


def add_history(router: APIRouter, service: Service) -> None:
    """Chats: listed, read, made, changed, deleted, carried over."""
    history = History(service)
    add_chats(router, history)
    add_messages(router, history)
    add_transfer(router, history)


def add_chats(router: APIRouter, history: History) -> None:
    """Chats as wholes."""

    @router.get("/history/chats", **told(ChatList, parameters=LISTING))
    async def listed(request: Request) -> Response:
        """Chats, pinned ones first and then the newest; those with all words of a query."""
        return await history.look(request, chats.list_chats, listing(request.query_params))

    @router.get("/history/chats/{chat}", **told(WholeChat))
    async def read(request: Request, chat: str) -> Response:
        """A chat with all its messages."""
        return await history.look(request, chats.get_chat, id_of(chat, "chat"))

    @router.put("/history/chats/{chat}", **told(Chat, ChatChange))
    async def put(request: Request, chat: str) -> Response:
        """Make a chat under an id of the client's, or change what is named."""
        body = await history.read(request, ChatChange)
        return await history.change(request, chats.put_chat, id_of(chat, "chat"), body.changes())

    @router.delete("/history/chats/{chat}", **told(Chat, parameters=[FOREVER]))
    async def delete(request: Request, chat: str) -> Response:
        """Move a chat to the trash; with forever=true, delete it for good."""
        forever = flag(request.query_params, "forever")
        return await history.change(
            request, chats.erase if forever else chats.trash, id_of(chat, "chat")
        )

    @router.post("/history/chats/{chat}/restore", **told(Chat))
    async def restore(request: Request, chat: str) -> Response:
        """Take a chat out of the trash."""
        return await history.change(request, chats.restore, id_of(chat, "chat"))


def add_messages(router: APIRouter, history: History) -> None:
    """What is said in them."""

    @router.put("/history/chats/{chat}/messages/{message}", **told(Message, MessageChange))
    async def put(request: Request, chat: str, message: str) -> Response:
        """Make a message under an id of the client's or replace it; it becomes the current one."""
        body = await history.read(request, MessageChange)
        names = id_of(chat, "chat"), id_of(message, "message")
        return await history.change(request, chats.put_message, *names, body.fields())


def add_transfer(router: APIRouter, history: History) -> None:
    """Chats in files."""

    @router.get("/history/export", response_class=_Download, **_told_export())
    async def export(request: Request) -> Response:
        """Chats as a file: all that are not in the trash, or one of any."""
        values = request.query_params
        kind = kind_of(values)
        owner, chat = request.state.owner, values.get("chat", "")
        if chat:
            work = partial(_chosen, owner, id_of(chat, "chat"))
        else:
            work = partial(chats.ids, owner=owner)
        chosen = await asyncio.wrap_future(history.store.read(work))
        media_type, ending = KINDS[kind]
        name = transfer.file_name(chat, ending)
        return StreamingResponse(
            history.save(owner, chosen, kind),
            media_type=media_type,
            headers={**_PRIVATE, "content-disposition": f'attachment; filename="{name}"'},
        )

    @router.post("/history/import", **told(Imported, SavedHistory))
    async def load(request: Request) -> Response:
        """Add the chats of an export; those whose ids are there already are left as they are."""
        return _json((await history.load(request)).model_dump())


_PRIVATE = {"cache-control": "no-store"}  # no browser keeps what a key was needed for


def _json(value: Object) -> JSONResponse:
    return JSONResponse(value, headers=_PRIVATE)


class _Download(Response):
    """A file; of several types, which the description names itself."""


def _add(owner: str, chat: Object, connection: Connection) -> bool:
    return chats.add_whole(connection, owner, chat)


def _chosen(owner: str, chat: str, connection: Connection) -> list[str]:
    rows.needed(connection, owner, chat)
    return [chat]


def _written(
    write: Callable[..., str], owner: str, chat: str, is_first: bool, connection: Connection
) -> str | None:
    """A chat as text; None if it was deleted for good since it was chosen."""
    if rows.find(connection, owner, chat) is None:
        return None
    return write(chats.get_chat(connection, owner, chat), is_first=is_first)


def _told_export() -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{SavedHistory.__name__}"}
    export = told(None, parameters=[FORMAT, ONE])
    export["responses"][200] = {
        "description": "The file.",
        "content": {
            "application/json": {"schema": schema},
            "text/markdown": {"schema": {"type": "string"}},
        },
    }
    return export
