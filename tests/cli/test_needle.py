"""`abyssal needle` as a person runs it: maps, stops, and what it refuses."""

import json
import os
import signal
import time

import pytest

from abyssal.evals.records import Records

SMALL = ("--lengths", "300,400", "--depths", "2", "--trials", "1")


def test_it_prints_a_map_of_each_metric_and_leaves_trials_and_a_page(
    abyssal_command, folder, tmp_path
):
    out = tmp_path / "needle"
    ran = abyssal_command("needle", folder, *SMALL, "--out", str(out))
    assert ran.code == 0
    for text in ("exact", "choice", "depth", "300", "400", "100%"):
        assert text in ran.out
    assert "was made to read 64 tokens" in ran.err
    assert {path.name for path in out.iterdir()} == {
        "run.json", "needle.jsonl", "results.json", "report.html"
    }  # fmt: skip
    again = abyssal_command("needle", folder, *SMALL, "--out", str(out), "--json")
    assert json.loads(again.out) == json.loads((out / "results.json").read_text())


def test_positions_can_be_changed_and_are_then_another_search(abyssal_command, folder, tmp_path):
    words = ("needle", folder, *SMALL, "--out", str(tmp_path / "needle"), "--json")
    assert json.loads(abyssal_command(*words, "--rope", "yarn:8").out)["rope"] == "yarn:8"
    ran = abyssal_command(*words, "--rope", "linear:8")
    assert ran.code == 2
    assert "rope=yarn:8, not linear:8" in ran.err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--lengths", "long"), "expected whole numbers such as 512,2048"),
        (("--lengths", "30"), "the question alone takes"),
        (("--lengths", "300", "--depths", "0"), "at least one length, one depth"),
        (("--lengths", "300", "--rope", "ntk:4"), "yarn:4 or linear:4"),
        (("--lengths", "300", "--rope", "yarn"), "yarn:4 or linear:4"),
        (("--lengths", "300", "--rope", "yarn:2"), "raise rope_scaling.factor"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_code_2(
    abyssal_command, folder, tmp_path, words, remedy
):
    ran = abyssal_command("needle", folder, *words, "--out", str(tmp_path / "out"))
    assert ran.code == 2
    assert remedy in ran.err
    assert (ran.out, ran.err.count("\n")) == ("", 1)


def test_a_signal_ends_it_and_the_same_command_goes_on(
    abyssal_command, folder, tmp_path, monkeypatch
):
    append = Records.append

    def interrupted(records: Records, rows: list[dict[str, object]]) -> None:
        append(records, rows)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    out, whole = tmp_path / "cut", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(Records, "append", interrupted)
        ran = abyssal_command("needle", folder, *SMALL, "--out", str(out))
    assert ran.code == 128 + signal.SIGTERM
    assert "run the same command to go on" in ran.err
    assert (out / "needle.jsonl").read_bytes().count(b"\n") == 1
    for place in (out, whole):
        assert abyssal_command("needle", folder, *SMALL, "--out", str(place)).code == 0
    for name in ("needle.jsonl", "results.json"):
        assert (whole / name).read_bytes() == (out / name).read_bytes()
