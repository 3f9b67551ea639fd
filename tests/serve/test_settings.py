"""A server that others can reach has keys, and keys are never shown."""

import dataclasses
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.serve.settings import KEYS_VARIABLE, Settings, is_loopback, label_of, read_keys

KEY = "sk-0123456789abcdef"
LOCAL = Settings(name="tiny", layout="v3.1")
KEYED = dataclasses.replace(LOCAL, api_keys=(KEY,))


def test_what_nobody_chose_is_reached_from_this_machine_only():
    assert is_loopback(LOCAL.host)
    assert LOCAL.cors_origins == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LocalHost"])
def test_this_machine_needs_no_keys(host):
    assert dataclasses.replace(LOCAL, host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "127.1.evil"])
def test_every_other_address_needs_keys(host):
    with pytest.raises(ConfigError, match=KEYS_VARIABLE):
        dataclasses.replace(LOCAL, host=host)
    assert dataclasses.replace(KEYED, host=host).host == host


@pytest.mark.parametrize("field", ["cors_origins", "allowed_hosts"])
def test_every_web_page_may_call_only_with_a_key(field):
    with pytest.raises(ConfigError, match=f"{field}=\\*"):
        dataclasses.replace(LOCAL, **{field: ("*",)})
    assert dataclasses.replace(KEYED, **{field: ("*",)})


def test_keys_are_not_in_what_is_printed():
    assert KEY not in repr(KEYED)
    assert KEY not in str(KEYED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a\nb"),
        ("layout", "v4"),
        ("port", -1),
        ("port", 65536),
        ("port", True),
        ("max_body_bytes", 0),
        ("max_depth", 0),
        ("max_depth", 100_000),
        ("max_messages", 0),
        ("max_n", 1025),
        ("max_answers", 0),
        ("max_stops", 0),
        ("body_timeout_s", 0),
        ("drain_s", -1),
        ("keep_alive_s", float("nan")),
        ("request_timeout_s", float("inf")),
        ("cors_origins", ("https://chat.example/",)),
        ("cors_origins", ("chat.example",)),
        ("cors_origins", ("null",)),
        ("allowed_hosts", ("models.example:8000",)),
        ("allowed_hosts", ("",)),
    ],
)
def test_what_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(LOCAL, **{field: value})


def test_keys_come_from_a_file_and_the_environment_each_once(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n\n  {KEY}  \n{KEY}\nsecond-key-of-the-team\n")
    file.chmod(0o600)
    environment = {KEYS_VARIABLE: f"{KEY}, third-key-of-the-team\nfourth-key-of-the-team"}
    assert read_keys(file, environment) == (
        KEY,
        "second-key-of-the-team",
        "third-key-of-the-team",
        "fourth-key-of-the-team",
    )
    assert read_keys(None, {}) == ()


def test_a_file_that_others_can_read_is_told(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(KEY)
    for mode, told in ((0o600, False), (0o640, True), (0o604, True)):
        caplog.clear()
        file.chmod(mode)
        with caplog.at_level(logging.WARNING):
            read_keys(file, {})
        assert ("chmod 600" in caplog.text) == told
        assert KEY not in caplog.text


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe", None])
def test_a_file_without_keys_is_an_error_not_an_open_door(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="keys"):
        read_keys(file, {})


@given(
    st.text(st.characters(exclude_categories=["Cs", "Z", "C"], exclude_characters=","), min_size=5)
)
def test_a_key_that_cannot_be_used_is_refused_without_showing_it(key):
    usable = len(key) >= 16 and key.isascii()
    if usable:
        assert read_keys(None, {KEYS_VARIABLE: key}) == (key,)
        return
    with pytest.raises(ConfigError, match=f"API key 1 in {KEYS_VARIABLE}") as refusal:
        read_keys(None, {KEYS_VARIABLE: key})
    assert key not in str(refusal.value).replace(KEYS_VARIABLE, "")
    with pytest.raises(ConfigError, match="API key 1 of 1"):
        dataclasses.replace(LOCAL, api_keys=(key,))


def test_two_keys_of_one_label_are_refused():
    first, labels = None, {}
    for number in range(10**6):  # of 32 bits each: a pair is expected within some 80,000
        key = f"key-of-somebody-{number}"
        first = labels.setdefault(label_of(key), key)
        if first != key:
            break
    with pytest.raises(ConfigError, match="API keys 1 and 2 have the same label"):
        dataclasses.replace(LOCAL, api_keys=(first, key))
    dataclasses.replace(LOCAL, api_keys=(first, first))
