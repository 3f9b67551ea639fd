"""`abyssal sample` as a person runs it: what it leaves, stops, and what it refuses."""

import json
import os
import signal

import pytest

from abyssal.engine.llm import LLM
from abyssal.evals.records import Records
from abyssal.train import teachers

TASK = ("--task", "chain_sum max_terms=2 max_digits=1")
GOOD = "<think> easy </think> <answer> {} </answer>"


@pytest.fixture
def taught(monkeypatch):
    """The engine's answers replaced by right ones, every second time."""

    def answers(llm: LLM, asked, layout):
        for question in asked:
            sums = question.asked["prompt"].split("problem: ")[-1].split("=")[0]
            texts = [GOOD.format(eval(sums)), "no"]
            rows = [{"text": text, "finish_reason": "stop"} for text in texts]
            yield teachers.bulk.Progress([{"index": question.index, "answers": rows}], 1, 0, 0, 0.0)

    monkeypatch.setattr(teachers.bulk, "answers", answers)


def test_it_leaves_answers_traces_a_report_and_shards(abyssal_command, folder, tmp_path, taught):
    out = tmp_path / "cold"
    words = ("sample", folder, "--out", str(out), *TASK, "--questions", "6", "--answers", "2")
    ran = abyssal_command(*words)
    assert ran.code == 0
    assert {path.name for path in out.iterdir()} == {
        "run.json", "answers.jsonl", "traces.jsonl", "report.json", "shards",
    }  # fmt: skip
    assert (out / "traces.jsonl").read_text().count("\n") == 6
    again = abyssal_command(*words, "--write", "zero", "--json")
    assert json.loads(again.out) == {
        "folder": str(out), "shards": str(out / "shards"), "traces": 6, "answers": 12,
        "fell": {"form": 6},
    }  # fmt: skip
    told = json.loads((out / "report.json").read_text())
    assert (told["questions"], told["total"], told["kept"]) == (6, 12, 6)


def test_a_signal_ends_it_and_the_same_command_goes_on(
    abyssal_command, folder, tmp_path, taught, monkeypatch
):
    append = Records.append

    def interrupted(records: Records, rows: list[dict[str, object]]) -> None:
        append(records, rows)
        os.kill(os.getpid(), signal.SIGTERM)

    def words(name: str) -> tuple[str, ...]:
        return ("sample", folder, "--out", str(tmp_path / name), *TASK, "--questions", "5")

    with monkeypatch.context() as patch:
        patch.setattr(Records, "append", interrupted)
        ran = abyssal_command(*words("parts"))
    assert ran.code == 128 + signal.SIGTERM
    assert "run the same command to go on" in ran.err
    assert (tmp_path / "parts" / "answers.jsonl").read_text().count("\n") < 5
    assert abyssal_command(*words("parts")).code == 0
    assert abyssal_command(*words("whole")).code == 0
    for name in ("answers.jsonl", "traces.jsonl", "report.json", "shards/tokens-00000.bin"):
        parts, whole = (tmp_path / one / name for one in ("parts", "whole"))
        assert parts.read_bytes() == whole.read_bytes(), name


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("nowhere",), "nowhere: no such folder"),
        (("http://127.0.0.1:9",), "give the student's --tokenizer"),
        (("http://127.0.0.1:9", "--tokenizer", "t"), "name one with --model"),
        (
            ("http://127.0.0.1:9", "--tokenizer", "t", "--model", "m", "--key", "NO_SUCH_KEY"),
            "NO_SUCH_KEY is not set",
        ),
        (("FOLDER", "--task", ""), "names no generator"),
        (("FOLDER", "--task", "sums"), "no 'sums'"),
        (("FOLDER", "--tasks", "tiny/base"), "unknown stage"),
        (("FOLDER", *TASK, "--questions", "0"), "questions=0, expected at least 1"),
        (("FOLDER", *TASK, "--answers", "0"), "answers=0, expected 1"),
        (("FOLDER", *TASK, "--keep", "0"), "keep=0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(
    abyssal_command, folder, tmp_path, words, remedy
):
    words = [folder if word == "FOLDER" else word for word in words]
    ran = abyssal_command("sample", *words, "--out", str(tmp_path / "out"))
    assert ran.code == 2
    assert remedy in ran.err
    assert (ran.out, ran.err.count("\n")) == ("", 1)
