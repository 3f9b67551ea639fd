"""The guard at the door: who may ask what, before any route sees the request.

Every path has its class in ROUTE_AUTH, and a path without one does not exist. In this order: the
size of the headers, the Host (a web page can make its own name mean this machine), the Origin (a
web page of somebody else's has no business here unless it is named), the path, the key. Every
request gets an id, and leaves one line in the log.
"""

import hashlib
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Mapping
from typing import Literal, NamedTuple

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abyssal.serve.faults import Fault, dialect_of, forbidden, malformed, not_found, unauthorized
from abyssal.serve.log import log_request
from abyssal.serve.settings import Settings, is_loopback, label_of
from abyssal.serve.ticket import Tickets

Auth = Literal["public", "key", "ticket"]  # ticket: a key, or a ticket for the path

ROUTE_AUTH: Mapping[str, Auth] = {
    "/v1/chat/completions": "key",
    "/v1/completions": "key",
    "/v1/models": "key",
    "/v1/models/{model:path}": "key",
    "/chat/completions": "key",
    "/completions": "key",
    "/models": "key",
    "/models/{model:path}": "key",
    "/beta/chat/completions": "key",
    "/beta/completions": "key",
    "/beta/models": "key",
    "/user/balance": "key",
    "/tokenize": "key",
    "/detokenize": "key",
    "/history/chats": "key",
    "/history/chats/{chat}": "key",
    "/history/chats/{chat}/restore": "key",
    "/history/chats/{chat}/messages/{message}": "key",
    "/history/export": "key",
    "/history/import": "key",
    "/metrics": "key",
    "/model": "key",
    "/model/report": "ticket",
    "/model/report/ticket": "key",
    "/health": "public",
    "/docs": "public",
    "/openapi.json": "public",
    "/": "public",
    "/assets/{name}": "public",
}

MAX_HEADER_BYTES = 8192  # of one value
MAX_HEADERS_BYTES = 32768  # of all names and values
MAX_PATH_CHARS = 2048


class Sender(NamedTuple):
    """Who sent a request, as far as its key tells."""

    owner: str  # the label of the key: 8 hex digits of its SHA-256; "" without keys
    salt: bytes  # senders share cached prefixes only under the same salt


class Guard:
    """ASGI middleware; goes outside of everything else.

    It leaves in the request's state: ``request_id``, ``owner`` and ``salt``. It reads from there,
    for the log: ``tokens``, a mapping such as {"prompt_tokens": 3, "completion_tokens": 5}.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        routes: Mapping[str, Auth] = ROUTE_AUTH,
        tickets: Tickets | None = None,
    ):
        self.app = app
        self._tickets = tickets or Tickets()
        self.settings = settings
        self._routes = [(compile_path(path)[0], auth) for path, auth in routes.items()]
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._hosts = _host_names(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a fault, or let the request through."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # a websocket; there are none here
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        begin_s = time.perf_counter()
        status = 500  # until an answer begins: whatever raises instead of answering is a bug

        async def receive_marked() -> Message:
            nonlocal status
            message = await receive()
            if message["type"] == "http.disconnect" and status == 500:
                status = 499
            return message

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(message, headers.get("origin"), request_id)
            await send(message)

        try:
            reply = self._judge(scope, headers)
            await (reply or self.app)(scope, receive_marked, send_marked)
        finally:
            log_request(_access_fields(scope, status, time.perf_counter() - begin_s))

    def _judge(self, scope: Scope, headers: Headers) -> Response | None:
        """The reply to a request that goes no further, or None."""
        try:
            _check_size(scope)
            self._check_host(headers)
            self._check_origin(headers)
            auth = self._auth_of(scope["path"])
            if _is_preflight(scope, headers):
                return Response(status_code=204, headers=_PREFLIGHT)
            is_open = auth == "public" or (auth == "ticket" and self._has_ticket(scope))
            sender = Sender("", b"") if is_open else self._identify(scope, headers)
        except Fault as fault:
            return fault.to_response()
        scope["state"].update(sender._asdict())
        return None

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            raise malformed("the request has no Host header or several; send one")
        name = _name_of(hosts[0])
        if "*" not in self._hosts and name not in self._hosts and not _is_address(name):
            message = "the Host header names another server; name it among the allowed hosts"
            raise Fault(421, message, code="unknown_host")

    def _check_origin(self, headers: Headers) -> None:
        """Refuse pages that are neither this server's own nor named."""
        origins = headers.getlist("origin")
        own = {f"http://{headers['host']}", f"https://{headers['host']}"}
        if len(origins) > 1 or not all(self._trusts(origin) or origin in own for origin in origins):
            message = "web pages of this origin may not call; name it among the CORS origins"
            raise forbidden(message, "unknown_origin")

    def _trusts(self, origin: str) -> bool:
        return origin in self.settings.cors_origins or "*" in self.settings.cors_origins

    def _auth_of(self, path: str) -> Auth:
        for pattern, auth in self._routes:
            if pattern.fullmatch(path):
                return auth
        raise not_found(path)

    def _has_ticket(self, scope: Scope) -> bool:
        ticket = QueryParams(scope.get("query_string", b"")).get("ticket", "")
        return self._tickets.opens(scope["path"], ticket)

    def _identify(self, scope: Scope, headers: Headers) -> Sender:
        """Who sent this; anybody is nobody in particular where there are no keys."""
        if not self._keys:
            return Sender("", b"")
        values = headers.getlist("authorization")
        if len(values) > 1:
            raise malformed("the request has several Authorization headers; send one")
        scheme, _, key = values[0].partition(" ") if values else ("", "", "")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # All keys are compared, each in constant time, so that time tells nothing about any.
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise unauthorized(dialect_of(scope["path"]))
        return Sender(label_of(key.strip()), hashlib.sha256(b"prefix cache" + digest).digest())

    def _mark(self, start: Message, origin: str | None, request_id: str) -> None:
        """Headers of every answer."""
        headers = MutableHeaders(scope=start)
        headers["x-request-id"] = request_id
        headers["x-content-type-options"] = "nosniff"
        headers.add_vary_header("Origin")
        if origin is not None and self._trusts(origin):
            headers["access-control-allow-origin"] = origin
            shown = "x-request-id, retry-after, content-disposition"
            headers["access-control-expose-headers"] = shown


_PREFLIGHT = {
    "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
    "access-control-allow-headers": "authorization, content-type, x-request-id",
    "access-control-max-age": "600",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _request_id(headers: Headers) -> str:
    """The client's own id where it is one word, else a new one."""
    ids = headers.getlist("x-request-id")
    if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]):
        return ids[0]
    return uuid.uuid4().hex


def _check_size(scope: Scope) -> None:
    if len(scope["path"]) + len(scope.get("query_string", b"")) > MAX_PATH_CHARS:
        raise Fault(414, "the path is too long; /docs lists what there is", code="path_too_long")
    sizes = [(len(name), len(value)) for name, value in scope["headers"]]
    longest = max((value for _, value in sizes), default=0)
    if longest > MAX_HEADER_BYTES or sum(map(sum, sizes)) > MAX_HEADERS_BYTES:
        message = (
            f"the headers are too large; at most {MAX_HEADER_BYTES} bytes in one and "
            f"{MAX_HEADERS_BYTES} in all"
        )
        raise Fault(431, message, code="headers_too_large", headers={"connection": "close"})


def _host_names(settings: Settings) -> frozenset[str]:
    """The names this server answers to."""
    names = {_name_of(name) for name in settings.allowed_hosts}
    if not _is_address(settings.host):
        names.add(_name_of(settings.host))
    if is_loopback(settings.host):
        names.add("localhost")
    return frozenset(names)


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    name = host if host.startswith("[") and host.endswith("]") else re.sub(r":\d*$", "", host)
    return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
    """Whether a host is an address itself, which no foreign page can take for its own name."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks if a page may call; only pages that may come this far."""
    asks = "origin" in headers and "access-control-request-method" in headers
    return scope["method"] == "OPTIONS" and asks


def _access_fields(scope: Scope, status: int, elapsed_s: float) -> dict[str, object]:
    state = scope["state"]
    return {
        "method": scope["method"][:16],
        "path": scope["path"][:200],
        "status": status,
        "ms": round(elapsed_s * 1000, 1),
        "request_id": state["request_id"],
        "key": state.get("owner", ""),
        **state.get("tokens", {}),
    }
