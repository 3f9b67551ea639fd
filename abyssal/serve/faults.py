"""What an answer says when a request cannot be served: a status and OpenAI's error object.

Two services share the object and differ in statuses. OpenAI (``/v1/...``) calls every mistake in
a request 400 and a model it does not have 404; DeepSeek (the same paths without ``/v1``) keeps 400
for bodies that cannot be read and models it does not have, and says 422 to values out of range.

A body stays under 4 KiB whatever was sent, and what was sent is quoted in pieces of at
most MAX_QUOTE characters.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import Literal

from starlette.responses import Response

from abyssal.errors import AbyssalError, DataError, OverloadedError, RequestError

Dialect = Literal["openai", "deepseek"]

MAX_QUOTE = 40  # characters of input in one message; its place may hold some more

_logger = logging.getLogger(__name__)

_DEEPSEEK = ("/chat/", "/beta/", "/completions", "/models", "/user/")


def dialect_of(path: str) -> Dialect:
    """Whose errors a path speaks: DeepSeek's where only DeepSeek has it, OpenAI's elsewhere."""
    return "deepseek" if path.startswith(_DEEPSEEK) else "openai"


class Fault(Exception):
    """A request that is answered with an error; raised anywhere, the app makes it a reply."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = _bounded(message, _MAX_MESSAGE)
        self.type = type
        self.param = None if param is None else _bounded(param, _MAX_PARAM)
        self.code = code
        self.headers = dict(headers or {})

    def to_body(self) -> dict[str, dict[str, str | None]]:
        """The error object; as JSON it has less than 4 KiB, in any escaping."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def to_response(self) -> Response:
        """The whole reply."""
        body = json.dumps(self.to_body(), ensure_ascii=False)
        return Response(body, self.status, self.headers, media_type="application/json")


# What was sent


def malformed(message: str) -> Fault:
    """The body cannot be read as the JSON object that was expected (400 in both dialects)."""
    return Fault(400, message, code="invalid_body")


def invalid(
    message: str, dialect: Dialect, *, param: str | None = None, code: str = "invalid_value"
) -> Fault:
    """A value that cannot be served."""
    return Fault(400 if dialect == "openai" else 422, message, param=param, code=code)


def not_found_model(model: str, dialect: Dialect, served: str) -> Fault:
    """A model id other than the one that is served."""
    advice = f"this server has {served!r:.60}"
    if dialect == "openai":
        message = f"The model {quote(model)} does not exist; {advice}"
        return Fault(404, message, param="model", code="model_not_found")
    return Fault(400, f"Model Not Exist: {quote(model)}; {advice}", param="model")


def not_found(path: str) -> Fault:
    """A path that leads nowhere."""
    return Fault(404, f"there is no {quote(path)} here; /docs lists what is", code="not_found")


def method_not_allowed(method: str, allowed: str | None = None) -> Fault:
    """A path asked with another method than it has."""
    remedy = f"use {allowed}" if allowed else "/docs lists what does"
    return Fault(
        405,
        f"{quote(method)} does not work here; {remedy}",
        code="method_not_allowed",
        headers={"allow": allowed} if allowed else None,
    )


def too_large(max_bytes: int) -> Fault:
    """A body over the limit; the connection closes, since the rest of it will not be read."""
    message = f"the body is larger than {max_bytes} bytes, the most this server takes; send less"
    return Fault(413, message, code="request_too_large", headers=_CLOSE)


def unsupported_media(message: str) -> Fault:
    """A body in a form that is not read here."""
    return Fault(415, message, code="unsupported_content_type", headers=_CLOSE)


def too_slow(seconds: float) -> Fault:
    """A body that did not come in time."""
    message = f"the body did not come within {seconds:g} s; send it at once"
    return Fault(408, message, code="request_timeout", headers=_CLOSE)


def disconnected() -> Fault:
    """The client went away while it was sending; nobody reads this."""
    return Fault(499, "the client went away", code="client_closed_request")


# Who sent it


def unauthorized(dialect: Dialect) -> Fault:
    """No key, or one that is not known; the key is never repeated."""
    headers = {"www-authenticate": "Bearer"}
    remedy = "send a key that this server knows as Authorization: Bearer KEY"
    if dialect == "openai":
        message = f"Incorrect or missing API key; {remedy}"
        return Fault(401, message, code="invalid_api_key", headers=headers)
    message = f"Authentication Fails (no such user); {remedy}"
    return Fault(401, message, type="authentication_error", headers=headers)


def forbidden(message: str, code: str) -> Fault:
    """A sender that is not let in, whatever its key."""
    return Fault(403, message, type="permission_error", code=code)


# How the server is


def overloaded(message: str, retry_after_s: float = 1.0) -> Fault:
    """As many requests wait as may."""
    return Fault(
        429,
        message,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(max(1, math.ceil(retry_after_s)))},
    )


def shutting_down(retry_after_s: float = 5.0) -> Fault:
    """The server finishes what it has and takes nothing new."""
    return Fault(
        503,
        "the server is stopping; send the request again to the next one",
        type="server_error",
        code="shutting_down",
        headers={"retry-after": str(max(1, math.ceil(retry_after_s))), **_CLOSE},
    )


def internal() -> Fault:
    """A bug of ours; the log has it, the client gets the request id."""
    message = "the server failed on this request; its log has the reason under the request id"
    return Fault(500, message, type="server_error", code="internal_error")


def from_status(status: int, allowed: str | None = None) -> Fault:
    """A status that the framework chose, without its words."""
    if status == 405:
        return method_not_allowed("this method", allowed)
    if status >= 500:
        return internal()
    return Fault(status, f"the request was refused with status {status}", code=f"http_{status}")


def from_error(
    error: AbyssalError, dialect: Dialect, *, param: str | None = None, retry_after_s: float = 1.0
) -> Fault:
    """What the house refused, as its sender should hear it.

    RequestError and DataError are about the request and keep their words, with long pieces of it
    cut; the rest is about the server, is logged, and stays here.
    """
    if isinstance(error, OverloadedError):
        return overloaded(_without_long_pieces(str(error)), retry_after_s)
    if isinstance(error, RequestError | DataError):
        return invalid(_without_long_pieces(str(error)), dialect, param=param)
    _logger.error("%s: %s", type(error).__name__, error)
    return internal()


def quote(value: object) -> str:
    """A value as its sender wrote it, in at most MAX_QUOTE characters; lists by their size."""
    match value:
        case str():
            text = value if len(value) <= _MAX_TEXT else value[: _MAX_TEXT - 1] + "…"
            return json.dumps(text, ensure_ascii=False)
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "an object"
        case None | bool() | int() | float():
            text = json.dumps(value)
            return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
        case _:
            return type(value).__name__


_MAX_TEXT = MAX_QUOTE - 2  # between quotation marks
_MAX_MESSAGE = 2400  # bytes of JSON, escapes included
_MAX_PARAM = 900
_CLOSE = {"connection": "close"}
_QUOTED = re.compile(r"(?P<mark>['\"`])(?P<text>(?:(?!(?P=mark)).)*)(?P=mark)", re.DOTALL)
_WORD = re.compile(rf"\S{{{MAX_QUOTE + 1},}}")


def _without_long_pieces(message: str) -> str:
    """A message of another room, its quotations and endless words cut to MAX_QUOTE."""
    cut = _QUOTED.sub(lambda found: f"{found['mark']}{_cut(found['text'])}{found['mark']}", message)
    return _WORD.sub(lambda found: _cut(found[0]), cut)[:500]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _bounded(text: str, max_bytes: int) -> str:
    """Text that every JSON writer can write, in at most max_bytes however it escapes."""
    text = text[:max_bytes].encode("utf-8", "replace").decode()
    while len(json.dumps(text)) > max_bytes:
        text = text[: len(text) * 3 // 4] + "…"
    return text
