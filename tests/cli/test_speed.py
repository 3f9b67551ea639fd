"""The bench prints a row for each level, and what went wrong below."""

import json

import pytest

from abyssal.cli import speed
from abyssal.engine.latency import Timeline, measured
from abyssal.serve import bench as client

WORDS = ("--prompt-tokens", "6", "--answer-tokens", "5")


def test_the_engine_has_a_row_for_each_level(abyssal_command, folder):
    levels = ("--concurrency", "1", "--concurrency", "3")
    ran = abyssal_command("bench", "engine", folder, *WORDS, *levels)
    assert ran.code == 0
    title, header, *rows = ran.out.splitlines()
    assert folder in title
    assert header.split()[:2] == ["requests", "tokens/s"]
    assert [row.split()[:4] for row in rows] == [["1", "at", "once", "4"], ["3", "at", "once", "6"]]
    ran = abyssal_command("bench", "engine", folder, *WORDS, *levels, "--requests", "2", "--json")
    found = json.loads(ran.out)
    assert (found["measured"], found["of"]) == ("engine", folder)
    assert [level["concurrency"] for level in found["levels"]] == [1, 3]
    assert [level["answer_tokens"] for level in found["levels"]] == [10, 10]


def test_a_server_that_runs_is_asked_with_the_key_of_a_variable(abyssal_command, monkeypatch):
    asked = []
    monkeypatch.setattr(client, "measure", lambda target, loads: asked.append(target) or [])
    monkeypatch.setenv("MY_KEY", "secret")
    words = ("bench", "serve", "--url", "http://a.example/v1/", "--model", "m")
    assert abyssal_command(*words, "--key-variable", "MY_KEY").code == 0
    assert asked == [client.Target("http://a.example", "m", "secret")]
    ran = abyssal_command(*words, "--key-variable", "NO_KEY")
    assert (ran.code, len(asked)) == (2, 1)
    assert "NO_KEY is not set" in ran.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("engine", "--url", "http://a.example"), "abyssal bench serve"),
        (("engine", "nowhere"), "nowhere: no such folder"),
        (("serve", "nowhere"), "nowhere: no such folder"),
        (("engine", "--concurrency", "0"), "concurrency=0"),
        (("engine", "--cache", "x"), "no amount of memory"),
        (("serve", "--url", "http://127.0.0.1:9"), "start the server"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_code_2(abyssal_command, words, named):
    ran = abyssal_command("bench", *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert named in ran.err


def test_failures_refusals_and_drafts_are_told_below(capsys):
    lines = [Timeline(0.0, [0.5], num_refused=3), Timeline(0.0, error="status 500: no")]
    speed._show_levels("it", [measured(lines, 2, 1.0, draft_acceptance=[0.75, 0.5])])
    said = capsys.readouterr().err
    assert "1 failed; the first: status 500: no, 3 times told to come later" in said
    assert "of the drafted tokens 75%, 50% were right" in said


@pytest.mark.slow
def test_a_server_is_started_measured_and_stopped(abyssal_command, folder):
    words = ("--concurrency", "2", "--cache", "1MiB", "--deterministic", "--json")
    ran = abyssal_command("bench", "serve", folder, *WORDS, *words)
    (level,) = json.loads(ran.out)["levels"]
    assert (level["requests"], level["failed"], level["answer_tokens"]) == (4, 0, 20)
    ran = abyssal_command("bench", "serve", folder, *WORDS, "--draft", "1")
    assert ran.code == 2
    assert "no MTP module" in ran.err
