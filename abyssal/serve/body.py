"""A request's body, from bytes that anybody may have sent to JSON that means one thing.

Refused: what is too large or too slow, not JSON by its header (a web page of somebody else's can
send other types without asking) or by its bytes, compressed, not UTF-8, nested too deep, and what
parsers disagree about: keys that are there twice, numbers that are not finite, half characters.
"""

import asyncio
import json
import math
import re
from typing import NoReturn

import numpy as np
from starlette.types import Receive, Scope

from abyssal.serve.faults import (
    disconnected,
    malformed,
    quote,
    too_large,
    too_slow,
    unsupported_media,
)
from abyssal.serve.settings import Settings

MAX_NUMBER_CHARS = 100  # a float64 in full, several times over


async def read_json(scope: Scope, receive: Receive, settings: Settings) -> object:
    """The JSON value of a request's body.

    Raises:
        Fault: it cannot be read: 400, 408, 413 or 415.
    """
    _check_headers(scope, settings)
    body = await _collect(receive, settings)
    if len(body) <= _AT_ONCE:
        return parse_json(body, settings)
    return await asyncio.to_thread(parse_json, body, settings)


def parse_json(body: bytes, settings: Settings) -> object:
    """The JSON value in body.

    Raises:
        Fault: 400, or 413 where it has more than max_body_bytes.
    """
    if len(body) > settings.max_body_bytes:
        raise too_large(settings.max_body_bytes)
    try:
        text = body.decode()
    except UnicodeDecodeError as problem:
        raise malformed(f"the body is not UTF-8 (byte {problem.start}); encode it so") from None
    _check_shape(body, settings.max_depth, settings.max_values)
    try:
        value: object = _DECODER.decode(text)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno}, column {problem.colno}"
        raise malformed(f"the body is not JSON: {problem.msg} at {place}") from None
    if _HALF.search(body):
        _check_characters(value)
    return value


_AT_ONCE = 2**16  # bytes; more is parsed beside the event loop, so that others' streams go on


def _check_headers(scope: Scope, settings: Settings) -> None:
    """Refuse by the headers what need not be read."""
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value.strip().lower())
    encodings = headers.get(b"content-encoding", [])
    if any(encoding != b"identity" for encoding in encodings):
        raise unsupported_media("the body is compressed; send it as it is")
    kinds = headers.get(b"content-type", [])
    if len(kinds) != 1 or not _JSON_TYPE.fullmatch(kinds[0].split(b";")[0].strip()):
        said = quote(b", ".join(kinds).decode("latin-1")) if kinds else "not said"
        raise unsupported_media(f"the Content-Type is {said}, expected application/json")
    for length in headers.get(b"content-length", []):
        if not length.isdigit():
            raise malformed("the Content-Length is not a number of bytes")
        # Digits beyond the limit's own are too many, and need not become a number.
        if len(length) > 18 or int(length) > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)


async def _collect(receive: Receive, settings: Settings) -> bytes:
    """The bytes of a body, all there within body_timeout_s."""
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise disconnected()
                body += message.get("body", b"")
                if len(body) > settings.max_body_bytes:
                    raise too_large(settings.max_body_bytes)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise too_slow(settings.body_timeout_s) from None


# Parsing


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are each there once: of two, one would be the last word for nobody."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise malformed(f"the key {quote(key)} is there twice in one object; send it once")
            seen.add(key)
    return fields


def _integer(digits: str) -> int:
    _check_number(digits)
    return int(digits)


def _float(digits: str) -> float:
    _check_number(digits)
    value = float(digits)
    if math.isinf(value):
        raise malformed(f"the number {quote(digits)} is larger than a float64 can be")
    return value


def _check_number(digits: str) -> None:
    if len(digits) > MAX_NUMBER_CHARS:
        raise malformed(f"a number has {len(digits)} characters, at most {MAX_NUMBER_CHARS} do")


def _constant(name: str) -> NoReturn:
    raise malformed(f"the body has {name}, which is not JSON; send a number or null")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _check_shape(body: bytes, max_depth: int, max_values: int) -> None:
    """Refuse deep nesting and swarms of values, before a parser makes Python objects of them."""
    # Without its escapes, a string ends at the next quotation mark.
    signs = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    signs = signs[~np.logical_xor.accumulate(signs == ord('"'))]  # what is outside of strings
    steps = _STEPS[signs]  # 1 into an object or a list, -1 out of it
    if steps.size and int(np.cumsum(steps, dtype=np.int32).max()) > max_depth:
        raise malformed(f"objects and lists are nested more than {max_depth} deep; flatten them")
    values = int(np.count_nonzero(steps == 1) + np.count_nonzero(signs == ord(",")))
    if values > max_values:
        raise malformed(
            f"the body has about {values} values, at most {max_values} are taken; send less at once"
        )


def _check_characters(value: object) -> None:
    """Refuse halves of surrogate pairs; only escapes can bring them, and no text can have them."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise malformed(
            "a text has half of a surrogate pair (\\ud800 to \\udfff); send whole characters"
        ) from None


_JSON_TYPE = re.compile(rb"application/(?:[a-z0-9.-]+\+)?json")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
