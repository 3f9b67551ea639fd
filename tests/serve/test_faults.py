"""A fault is small whatever was sent, quotes little of it, and speaks the dialect of its path."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal import errors
from abyssal.serve import faults
from abyssal.serve.faults import Fault

ANY_TEXT = st.text(st.characters(codec=None)) | st.builds(
    lambda piece, count: piece * count,
    st.sampled_from(["\x00", "\ud800", "😀", '"', "\\", "é", "\u2028", "a b ", "'x", "\x7f<"]),
    st.integers(1, 20_000),
)

# Every way to make a fault out of something that was sent.
QUOTING = {
    "malformed": lambda text: faults.malformed(f"the key {faults.quote(text)} is there twice"),
    "invalid": lambda text: faults.invalid(f"stop={faults.quote(text)}", "openai", param="stop"),
    "not_found_model": lambda text: faults.not_found_model(text, "openai", "tiny"),
    "not_found_model deepseek": lambda text: faults.not_found_model(text, "deepseek", "tiny"),
    "not_found": faults.not_found,
    "method_not_allowed": faults.method_not_allowed,
    "from_error, quoted": lambda text: faults.from_error(
        errors.RequestError(f"role={text!r}, expected a role"), "openai"
    ),
    "from_error, bare": lambda text: faults.from_error(
        errors.DataError(f"{text} is no role"), "deepseek"
    ),
}


def size_of(fault: Fault) -> int:
    """Bytes of the body, by the writer that escapes most or least, whichever is longer."""
    body = fault.to_body()
    plain = json.dumps(body, ensure_ascii=False).encode()
    assert fault.to_response().body == plain
    return max(len(plain), len(json.dumps(body)))


@given(message=ANY_TEXT, param=st.none() | ANY_TEXT)
def test_a_body_is_under_4_kib_whatever_is_put_into_it(message, param):
    fault = Fault(400, message, param=param)
    assert size_of(fault) < 4096
    assert set(fault.to_body()["error"]) == {"message", "type", "param", "code"}


@given(message=st.text("abc é😀", max_size=150))
def test_a_short_message_is_said_in_full(message):
    assert Fault(400, message).message == message


@pytest.mark.parametrize("name", QUOTING)
@given(text=ANY_TEXT)
def test_what_was_sent_makes_no_fault_long(name, text):
    fault = QUOTING[name](text)
    assert size_of(fault) < 4096
    assert 400 <= fault.status < 500


@pytest.mark.parametrize("name", QUOTING)
def test_no_more_than_60_characters_of_what_was_sent_come_back(name):
    sent = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))  # no character twice
    body = json.dumps(QUOTING[name](sent).to_body(), ensure_ascii=False)
    assert 0 < sum(body.count(character) for character in sent) <= 60


@pytest.mark.parametrize("mark", ["'", '"', "`"])
def test_long_quotations_of_other_rooms_are_cut(mark):
    sent = "".join(chr(0x4E00 + k) + " " for k in range(1000))
    problem = errors.RequestError(f"role={mark}{sent}{mark}, expected {mark}user{mark}")
    message = faults.from_error(problem, "openai").message
    assert sum(character in message for character in sent if character != " ") <= 60
    assert message.endswith(f"expected {mark}user{mark}")


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("hi", '"hi"'),
        ("a" * 100, '"' + "a" * 37 + '…"'),
        (True, "true"),
        (None, "null"),
        (1.5, "1.5"),
        (10**99, "1" + "0" * 36 + "…"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object"),
    ],
)
def test_a_value_is_quoted_as_its_sender_wrote_it(value, quoted):
    assert faults.quote(value) == quoted


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "openai"),
        ("/v1/models", "openai"),
        ("/tokenize", "openai"),
        ("/health", "openai"),
        ("/chat/completions", "deepseek"),
        ("/beta/completions", "deepseek"),
        ("/completions", "deepseek"),
        ("/models", "deepseek"),
        ("/user/balance", "deepseek"),
    ],
)
def test_paths_without_v1_speak_deepseek(path, dialect):
    assert faults.dialect_of(path) == dialect


def test_the_dialects_differ_as_their_services_do():
    assert faults.invalid("n=-1", "openai").status == 400
    assert faults.invalid("n=-1", "deepseek").status == 422
    assert faults.malformed("not JSON").status == 400

    ours, theirs = (faults.not_found_model("gpt-9", d, "tiny") for d in ("openai", "deepseek"))
    assert (ours.status, ours.code, ours.param) == (404, "model_not_found", "model")
    assert theirs.status == 400
    assert theirs.message.startswith("Model Not Exist")

    ours, theirs = faults.unauthorized("openai"), faults.unauthorized("deepseek")
    assert (ours.status, ours.code) == (401, "invalid_api_key")
    assert (theirs.status, theirs.type) == (401, "authentication_error")
    assert "Authentication Fails" in theirs.message


@pytest.mark.parametrize("error", [errors.RequestError, errors.DataError])
@pytest.mark.parametrize("dialect", ["openai", "deepseek"])
def test_what_the_house_says_about_a_request_reaches_its_sender(error, dialect):
    sentence = "top_p=0, expected a number above 0; leave it out to turn it off"
    fault = faults.from_error(error(sentence), dialect, param="top_p")
    assert (fault.message, fault.param) == (sentence, "top_p")
    assert fault.status == (400 if dialect == "openai" else 422)


@pytest.mark.parametrize("error", [errors.ConfigError, errors.CheckpointError])
def test_what_it_says_about_the_server_goes_to_the_log_instead(error, caplog):
    fault = faults.from_error(error("/srv/models/secret: no such folder"), "openai")
    assert fault.status == 500
    assert "secret" not in fault.message
    assert "secret" in caplog.text


@pytest.mark.parametrize(("wait_s", "header"), [(0, "1"), (0.2, "1"), (2.5, "3"), (60, "60")])
def test_who_comes_too_many_is_told_when_to_come_again(wait_s, header):
    full = errors.OverloadedError("64 requests wait already")
    fault = faults.from_error(full, "deepseek", retry_after_s=wait_s)
    assert fault.status == 429
    assert fault.to_response().headers["retry-after"] == header
    assert faults.shutting_down(wait_s).to_response().headers["retry-after"] == header


@pytest.mark.parametrize("status", [400, 404, 405, 406, 418, 500, 503])
def test_a_status_of_the_framework_becomes_a_fault_of_the_house(status):
    fault = faults.from_status(status, allowed="POST" if status == 405 else None)
    assert fault.status == (500 if status >= 500 else status)
    assert fault.code
    assert (fault.headers.get("allow") == "POST") == (status == 405)
