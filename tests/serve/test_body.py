"""A body is read as the one thing it means, or refused; no bytes bring more than a fault."""

import asyncio
import dataclasses
import itertools
import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abyssal.serve.body import MAX_NUMBER_CHARS, parse_json, read_json
from abyssal.serve.faults import Fault
from abyssal.serve.settings import Settings

SETTINGS = Settings(name="tiny", layout="v3.1", max_depth=12, max_body_bytes=2**20)
ROOMY = dataclasses.replace(SETTINGS, max_body_bytes=8 * 2**20)
JSON_HEADERS = ((b"content-type", b"application/json"),)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
ALPHABET = st.sampled_from(list('[]{}",:\\u0dD8cé1e-.nantrfls \n\x00'))


def read(*chunks, headers=JSON_HEADERS, settings=SETTINGS, then=None):
    """What read_json makes of a body that comes in these chunks; `then` is its last message."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append(then or {"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        message = messages.pop(0)
        if message["type"] == "never":
            await asyncio.Event().wait()
        return message

    return asyncio.run(read_json({"headers": headers}, receive, settings))


def refusal_of(call, *args, **kwargs) -> Fault:
    with pytest.raises(Fault) as refusal:
        call(*args, **kwargs)
    return refusal.value


# The bytes


@given(VALUES, st.booleans())
def test_a_value_comes_out_as_it_was_put_in(value, ascii_only):
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), SETTINGS) == value


@given(value=VALUES, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_it_does_not_matter_how_a_body_is_cut(value, cuts):
    body = json.dumps(value).encode()
    edges = [0, *sorted(cuts), len(body)]
    assert read(*(body[a:b] for a, b in itertools.pairwise(edges))) == value


@given(st.binary() | st.lists(ALPHABET).map(lambda signs: "".join(signs).encode()))
@example(b"")
@example(b"\xef\xbb\xbf{}")
@example(b"\xed\xa0\x80")  # half a pair, as UTF-8 does not write it
@example(b'"\x00"')
@example(b'{"a": 1} {"a": 2}')
def test_any_bytes_are_json_as_python_reads_it_or_a_fault(body):
    try:
        outcome = parse_json(body, SETTINGS)
    except Fault as fault:
        outcome = fault
    if isinstance(outcome, Fault):
        assert outcome.status == 400
        assert len(json.dumps(outcome.to_body())) < 4096
    else:
        assert outcome == json.loads(body)


@given(
    depth=st.integers(1, 40),
    opening=st.sampled_from(["[", '{"a":', '{"[\\"{":', '[{"\\\\":']),
    text=st.text('[]{}"\\ ', max_size=60),
)
def test_what_is_nested_deeper_than_max_depth_is_refused_and_nothing_else(depth, opening, text):
    closing = {"[": "]", '{"a":': "}", '{"[\\"{":': "}", '[{"\\\\":': "}]"}[opening]
    said = json.dumps(text)
    body = f"[{said},{opening * depth}{said}{closing * depth}]".encode()
    levels = 1 + depth * len(closing)
    if levels <= SETTINGS.max_depth:
        parse_json(body, SETTINGS)
    else:
        assert "deep" in refusal_of(parse_json, body, SETTINGS).message


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_hundred_thousand_levels_are_a_fault_not_a_crash(opening):
    assert "deep" in refusal_of(parse_json, opening * 100_000, SETTINGS).message


@given(key=TEXTS)
def test_a_key_may_not_be_there_twice_however_it_is_escaped(key):
    once, again = json.dumps(key), json.dumps(key, ensure_ascii=False)
    apart = f"[{{{once}: {{{once}: 1}}}}, {{{again}: 1}}]"
    assert parse_json(apart.encode(), SETTINGS) == json.loads(apart)
    twice = f"[{{{once}: 1, {again}: 2}}]"
    assert "twice" in refusal_of(parse_json, twice.encode(), SETTINGS).message


@pytest.mark.parametrize(
    "number",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * (MAX_NUMBER_CHARS + 1),
     "9" * 10_000, "0." + "1" * 10_000, "1e" + "0" * 10_000 + "1"],
)  # fmt: skip
def test_a_number_that_no_float_can_be_or_without_end_is_refused(number):
    fault = refusal_of(parse_json, f'{{"n": [{number}]}}'.encode(), SETTINGS)
    assert fault.status == 400
    assert number[:61] not in fault.message or len(number) <= 60


@pytest.mark.parametrize("number", ["1e308", "-0", str(2**63), str(-(2**64)), "5e-324", "1e-999"])
def test_other_numbers_are_read(number):
    assert parse_json(number.encode(), SETTINGS) == json.loads(number)


@pytest.mark.parametrize(
    "half", [r"\ud800", r"\udfff", r"\ude00\ud83d", r"\ud83d\\ude00", r"\uDBFFx"]
)
@pytest.mark.parametrize("frame", ['"%s"', '{"%s": 1}', '[{"a": ["b", "%s"]}]'])
def test_half_a_character_is_refused_in_texts_and_keys(half, frame):
    fault = refusal_of(parse_json, (frame % half).encode(), SETTINGS)
    assert "surrogate" in fault.message
    assert fault.to_response().body


def test_whole_characters_are_read_escaped_or_not():
    body = r'["\ud83d\ude00", "😀", "\\ud800", "\u0000"]'.encode()
    assert parse_json(body, SETTINGS) == ["😀", "😀", "\\ud800", "\x00"]


@pytest.mark.parametrize("value", [b"0", b"[]", b'""', b"{}"])
def test_a_swarm_of_values_is_refused_before_it_is_made(value):
    def body(count):
        return b"[" + b",".join([value] * count) + b"]"

    begin_s = time.perf_counter()
    assert "values" in refusal_of(parse_json, body(ROOMY.max_values + 1), ROOMY).message
    assert time.perf_counter() - begin_s < 2
    assert len(parse_json(body(1000), ROOMY)) == 1000


def test_no_body_of_8_mib_takes_long():
    size = 8 * 2**20 - 10
    for body in (
        b'"' * size,
        b'"' + b'\\"' * (size // 2),
        b'"' + b"\\" * size,
        b'"' + b"\\ud83d" * (size // 6) + b'"',
        b"\\" * size,
        b" " * size,
        b"[" * size,
        b"1" * size,
    ):
        begin_s = time.perf_counter()
        refusal_of(parse_json, body, ROOMY)
        assert time.perf_counter() - begin_s < 3, body[:8]


# The request around them


@pytest.mark.parametrize(
    "kind",
    ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8",
     "application/json ;charset=utf-8", " application/json ", "application/problem+json"],
)  # fmt: skip
def test_json_is_read_by_any_of_its_names(kind):
    assert read(b"{}", headers=[(b"Content-Type", kind.encode())]) == {}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"text/plain")],  # what a foreign page can send without asking
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"multipart/form-data; boundary=application/json")],
        [(b"content-type", b"application/jsonp")],
        [(b"content-type", b"\xff" * 9000)],
        [(b"content-type", b"text/plain, application/json")],
        [*JSON_HEADERS, (b"content-type", b"text/plain")],
        [*JSON_HEADERS, (b"content-encoding", b"gzip")],
        [*JSON_HEADERS, (b"content-encoding", b"identity"), (b"content-encoding", b"br")],
    ],
)
def test_what_is_not_said_to_be_plain_json_is_415(headers):
    fault = refusal_of(read, b"{}", headers=headers)
    assert fault.status == 415
    assert len(fault.to_response().body) < 4096


def test_identity_is_no_compression():
    assert read(b"{}", headers=[*JSON_HEADERS, (b"content-encoding", b"identity")]) == {}


@pytest.mark.parametrize("length", [b"1048577", b"9" * 19, b"9" * 5000])
def test_a_length_over_the_limit_is_refused_before_a_byte_is_read(length):
    headers = [*JSON_HEADERS, (b"content-length", length)]
    assert refusal_of(read, headers=headers, then={"type": "never"}).status == 413


@pytest.mark.parametrize("length", [b"", b"-1", b"1e3", "²".encode("latin-1")])
def test_a_length_that_is_no_number_is_refused(length):
    headers = [*JSON_HEADERS, (b"content-length", length)]
    assert refusal_of(read, b"{}", headers=headers).status == 400


def test_a_body_without_a_length_is_read_up_to_the_limit_and_no_further():
    most = SETTINGS.max_body_bytes
    text = "a" * (most - 2)
    assert read(b'"', text.encode(), b'"') == text
    fault = refusal_of(read, b'"', text.encode(), b'"', b" ", then={"type": "never"})
    assert fault.status == 413
    assert fault.headers["connection"] == "close"
    assert refusal_of(parse_json, b" " * (most + 1), SETTINGS).status == 413


def test_a_body_that_drips_is_cut_off_after_body_timeout_s():
    hasty = dataclasses.replace(SETTINGS, body_timeout_s=0.05)
    begin_s = time.perf_counter()
    fault = refusal_of(read, *[b" "] * 5, settings=hasty, then={"type": "never"})
    assert fault.status == 408
    assert fault.headers["connection"] == "close"
    assert time.perf_counter() - begin_s < 2


def test_a_client_that_leaves_while_it_sends_ends_the_reading():
    assert refusal_of(read, b'{"a"', then={"type": "http.disconnect"}).status == 499


def test_long_bodies_are_parsed_beside_the_event_loop():
    turns = 0

    async def spin():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def receive():
        return {"type": "http.request", "body": json.dumps(list(range(100_000))).encode()}

    async def both():
        spinning = asyncio.create_task(spin())
        value = await read_json({"headers": JSON_HEADERS}, receive, SETTINGS)
        spinning.cancel()
        return value

    assert len(asyncio.run(both())) == 100_000
    assert turns > 1
