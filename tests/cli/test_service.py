"""The verb that serves: what it refuses, what it passes on, and that its example works."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import abyssal
from abyssal.engine.options import EngineOptions
from abyssal.serve import server

KEY = "a-key-that-is-long-enough"


@pytest.fixture
def asked(monkeypatch) -> list:
    """What `run` was called with, instead of serving."""
    calls = []

    def run(folder, settings, options, *, ready, log_level):
        calls.append((folder, settings, options, log_level))
        ready("http://127.0.0.1:4321")
        return signal.SIGTERM

    monkeypatch.setattr(server, "run", run)
    return calls


def test_every_option_reaches_the_server(abyssal_command, folder, asked, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    ran = abyssal_command(
        "serve", folder, "--host", "0.0.0.0", "--port", "81", "--name", "deep", "--layout", "v3.1",
        "--key-file", str(keys), "--max-running", "5", "--max-waiting", "6", "--cache", "1MiB",
        "--draft", "2", "--deterministic", "--cors", "https://a.example", "--cors",
        "https://b.example", "--allow-host", "models.example", "--timeout-s", "9", "--drain-s",
        "3", "--history", "my.sqlite3", "--map-temperature", "--log-level", "warning",
    )  # fmt: skip
    assert ran.code == 128 + signal.SIGTERM
    ((where, settings, options, log_level),) = asked
    assert (where, log_level) == (folder, "warning")
    assert (settings.host, settings.port, settings.name) == ("0.0.0.0", 81, "deep")
    assert (settings.layout, settings.api_keys) == ("v3.1", (KEY,))
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.allowed_hosts == ("models.example",)
    assert (settings.request_timeout_s, settings.drain_s) == (9, 3)
    assert settings.map_temperature
    assert settings.history == Path("my.sqlite3")
    assert options == EngineOptions(
        max_running=5, max_waiting=6, cache_bytes=2**20, draft=2, deterministic=True
    )


def test_it_says_where_it_listens(abyssal_command, folder, asked):
    said = abyssal_command("serve", folder).out
    assert "listens on http://127.0.0.1:4321" in said
    assert "Authorization" not in said
    ((_, settings, options, _),) = asked
    assert (settings.name, settings.layout) == (Path(folder).name, "v3")
    assert options == EngineOptions(max_waiting=256)
    found = json.loads(abyssal_command("serve", folder, "--json").out)
    assert found["url"] == "http://127.0.0.1:4321"


def test_chats_are_kept_among_the_users_data_unless_told_otherwise(
    abyssal_command, folder, asked, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for data, expected in (
        (str(tmp_path / "data"), tmp_path / "data"),
        ("", tmp_path / ".local" / "share"),
        ("relative", tmp_path / ".local" / "share"),
    ):
        monkeypatch.setenv("XDG_DATA_HOME", data)
        said = abyssal_command("serve", folder).out
        assert asked[-1][1].history == expected / "abyssal" / "history.sqlite3"
        assert f"chats are kept in {asked[-1][1].history}" in said
    assert "kept" not in abyssal_command("serve", folder, "--no-history").out
    assert asked[-1][1].history is None
    assert not list(tmp_path.iterdir())  # it is the server that makes the file


@pytest.mark.parametrize("found", [True, False])
def test_a_browser_opens_where_it_listens_if_there_is_one(
    abyssal_command, folder, asked, monkeypatch, found
):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or found)
    ran = abyssal_command("serve", folder, "--open")
    assert opened == ["http://127.0.0.1:4321"]
    assert ("no browser was found" in ran.err) == (not found)
    assert not abyssal_command("serve", folder).err
    assert len(opened) == 1


def test_keys_may_be_in_the_environment_and_are_never_shown(
    abyssal_command, folder, asked, monkeypatch
):
    monkeypatch.setenv("ABYSSAL_API_KEYS", KEY)
    ran = abyssal_command("serve", folder)
    assert asked[0][1].api_keys == (KEY,)
    assert '-H "Authorization: Bearer $KEY"' in ran.out
    assert KEY not in ran.out + ran.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--host", "0.0.0.0"), "no API keys"),
        (("--cache", "much"), "no amount of memory"),
        (("--key-file", "nowhere.txt"), "nowhere.txt"),
        (("--draft", "-1"), "draft=-1"),
        (("--port", "99999"), "port=99999"),
        (("--cors", "a.example"), "cors_origins"),
        (("--history", "my.sqlite3", "--no-history"), "--no-history"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_code_2(abyssal_command, folder, asked, words, named):
    ran = abyssal_command("serve", folder, *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert named in ran.err
    assert not asked


@pytest.mark.slow
def test_the_example_works_as_printed_and_sigterm_ends_it(folder):
    words = [sys.executable, "-m", "abyssal", "serve", folder, "--port", "0", "--no-history"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=Path(abyssal.__file__).parents[1],
    )  # fmt: skip
    with process:
        where, example = process.stdout.readline(), process.stdout.readline()
        _, url, *rest = shlex.split(example)
        assert re.match(r".* listens on (\S+) ", where)[1] == url.removesuffix(
            "/v1/chat/completions"
        )
        body = json.loads(rest[rest.index("-d") + 1]) | {"max_tokens": 4}
        answer = httpx.post(url, json=body, timeout=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert answer.json()["usage"]["completion_tokens"] <= 4
