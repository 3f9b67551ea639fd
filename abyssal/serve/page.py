"""The chat page: files that `make web` built from web/, served as they are.

Everything but index.html has a name that says what is in it, and never changes under that name;
browsers keep it for a year and ask for index.html alone, by its tag. The policy lets the page run
its own scripts and call this server, and nothing else.
"""

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from abyssal.serve.faults import not_found

FOLDER = Path(__file__).parent / "web"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
KEPT = "public, max-age=31536000, immutable"  # a year
ASKED = "no-cache"  # may be kept, but not used without asking

_TYPES = {".js": "text/javascript", ".woff2": "font/woff2", ".svg": "image/svg+xml"}


class Form(NamedTuple):
    """A file as it is sent, whole or compressed."""

    data: bytes
    tag: str  # of these bytes, quoted as ETag wants it


class File(NamedTuple):
    """One file of the page, in memory."""

    media_type: str
    plain: Form
    packed: Form | None  # by gzip, where that makes it smaller


@cache
def read_page(folder: Path = FOLDER) -> tuple[File, Mapping[str, File]]:
    """index.html and the assets by name; some hundred kilobytes in all."""
    assets = {path.name: _read(path) for path in sorted((folder / "assets").iterdir())}
    return _read(folder / "index.html"), assets


def add_page(router: APIRouter) -> None:
    """The routes of the page; not in the description, which is for programs."""
    index, assets = read_page()

    @router.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page."""
        return _reply(request, index, ASKED)

    @router.get("/assets/{name}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        """A script, style, font or picture of the page."""
        if name not in assets:
            raise not_found(request.url.path)
        return _reply(request, assets[name], KEPT)


def _reply(request: Request, file: File, caching: str) -> Response:
    headers = {**HEADERS, "cache-control": caching}
    form = file.plain
    if file.packed is not None:
        headers["vary"] = "Accept-Encoding"
        if _takes_gzip(request.headers.get("accept-encoding", "")):
            form = file.packed
    headers["etag"] = form.tag
    known = request.headers.get("if-none-match", "")
    if form.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    if form is file.packed:
        headers["content-encoding"] = "gzip"
    return Response(form.data, headers=headers, media_type=file.media_type)


def _takes_gzip(accepted: str) -> bool:
    """Whether a client named gzip, and not to refuse it."""
    for coding in accepted.lower().split(","):
        name, _, quality = coding.replace(" ", "").partition(";")
        if name == "gzip":
            return quality not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _read(path: Path) -> File:
    data = path.read_bytes()
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    assert kind is not None, f"{path.name} has a type nobody knows"
    packed = gzip.compress(data, mtime=0)
    is_smaller = len(packed) < 0.9 * len(data)  # fonts are compressed already
    return File(kind, _form(data), _form(packed) if is_smaller else None)


def _form(data: bytes) -> Form:
    return Form(data, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
