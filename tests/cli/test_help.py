"""Help is quick and shows examples; a slip of the finger is told what was meant."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import abyssal
from abyssal.cli import main, reference

VERBS = [verb for verbs in main.PANELS.values() for verb in verbs]
NAMES = [verb.function.__name__ for verb in VERBS]


def seconds_of_cpu(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "abyssal", *words, "--help"]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("words", [(), *((name,) for name in NAMES)])
def test_help_answers_at_once(words):
    # The promise is 0.3 s on an idle machine; other tests run beside this one.
    assert min(seconds_of_cpu(*words) for _ in range(3)) < 0.6


def test_the_overview_lists_every_verb_with_its_summary(abyssal_command):
    ran = abyssal_command("--help")
    assert ran.code == 0
    for panel, verbs in main.PANELS.items():
        assert panel in ran.out
        for verb in verbs:
            assert f" {verb.function.__name__} " in ran.out


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_every_verb_shows_complete_examples_and_speaks_json(abyssal_command, verb):
    ran = abyssal_command(verb.function.__name__, "--help")
    assert ran.code == 0
    assert verb.examples
    for example in verb.examples:
        assert example.startswith(f"abyssal {verb.function.__name__}")
        assert " ".join(example.split()) in " ".join(ran.out.split())
    assert "--json" in ran.out


def test_no_verb_at_all_shows_the_overview(abyssal_command):
    ran = abyssal_command()
    assert "Usage: abyssal" in ran.out + ran.err
    assert ran.code == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("plam", "tiny"), "Did you mean 'plan'?"),
        (("plan", "tiny", "--seq-length", "3"), "--seq-len"),
        (("plan", "tiny", "--seq-len", "many"), "Invalid value for '--seq-len'"),
        (("train",), "Missing argument 'recipe'"),
    ],
)
def test_a_slip_exits_2_and_is_told_what_was_meant(abyssal_command, words, hint):
    ran = abyssal_command(*words)
    assert (ran.code, ran.out) == (2, "")
    assert hint in ran.err


def test_the_version_is_the_package_s(abyssal_command):
    assert abyssal_command("--version") == (0, f"abyssal {abyssal.__version__}\n", "")


def test_the_reference_in_the_docs_is_current():
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    assert page.read_text() == reference.reference(), "stale: run `make docs`"


def test_pipes_carry_no_color_and_no_progress():
    command = [sys.executable, "-m", "abyssal", "plan", "tiny"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "\x1b" not in run.stdout + run.stderr
