"""`abyssal eval` as a person runs it: scores, stops, and what it refuses."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from abyssal.engine.llm import LLM
from abyssal.evals import catalog
from abyssal.evals.harness import bits_per_byte
from abyssal.evals.records import Records

TASKS = ("--tasks", "clams,xcopa,rg:gcd", "--max-tokens", "4")


def test_eval_prints_the_bits_per_byte_of_a_file(abyssal_command, folder, tmp_path):
    file = tmp_path / "texts.jsonl"
    texts = ["the deep sea", "fish fish"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    llm = LLM(folder)
    found = bits_per_byte(llm, llm.tokenizer, texts)
    ran = abyssal_command("eval", folder, "--bpb", str(file), "--json")
    assert json.loads(ran.out) == {
        "bits_per_byte": found.bits_per_byte,
        "bytes": 21,
        "tokens": found.tokens,
        "documents": 2,
    }
    file.write_text(file.read_text() + "{broken\n")
    ran = abyssal_command("eval", folder, "--bpb", str(file))
    assert f"{found.bits_per_byte:.4f}" in ran.out
    assert "bad JSON" in ran.err


def test_tasks_print_a_table_and_leave_samples_and_results(abyssal_command, folder, tmp_path):
    out = tmp_path / "eval"
    words = ("eval", folder, *TASKS, "--limit", "5", "--out", str(out))
    ran = abyssal_command(*words)
    assert ran.code == 0
    for text in ("clams", "5/3,480", "acc_norm", "95% interval", "specialization"):
        assert text in ran.out
    assert "Italian and Chinese of eleven languages" in ran.err
    assert "rg:gcd: 5 questions were too long to be asked and count as wrong" in ran.err
    found = {path.name for path in out.iterdir()}
    samples = {"clams.jsonl", "xcopa.jsonl", "rg-gcd.jsonl"}
    assert found == samples | {"run.json", "results.json", "report.html"}
    again = abyssal_command(*words, "--json")
    told = json.loads(again.out)
    assert told["tasks"]["xcopa"]["metrics"].keys() == {"acc", "acc_norm"}
    assert told == json.loads((out / "results.json").read_text())


def test_scores_go_beside_the_model_where_no_place_is_named(abyssal_command, folder):
    ran = abyssal_command("eval", folder, "--tasks", "clams", "--limit", "2")
    assert ran.code == 0
    assert (Path(folder) / "eval" / "clams.jsonl").is_file()


@pytest.mark.parametrize("words", [("--json",), ()])
def test_the_list_tells_source_license_protocol_and_chance(abyssal_command, words):
    ran = abyssal_command("eval", "--tasks", "list", *words)
    assert ran.code == 0
    for row in catalog.described():
        for name in ("task", "source", "license"):
            assert str(row[name]) in ran.out
    assert "66,799" in ran.out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ((), "--tasks NAMES or --bpb FILE"),
        (("--tasks", "blimp", "--bpb", "f"), "--tasks NAMES or --bpb FILE"),
        (("--bpb", "nowhere.txt"), "nowhere.txt"),
        (("--tasks", "blmp"), "did you mean blimp?"),
        (("--tasks", ","), "name some"),
        (("--tasks", "blimp", "--limit", "0"), "limit=0, expected at least 1"),
        (("--tasks", "blimp", "--samples", "0"), "samples=0, expected 1"),
        (("--tasks", "blimp", "--template", "poem"), "expected text, chat, r1-zero"),
        (("--tasks", "blimp", "--out", "file"), "choose another"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(
    abyssal_command, folder, tmp_path, monkeypatch, words, remedy
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    ran = abyssal_command("eval", folder, *words)
    assert ran.code == 2
    assert remedy in ran.err
    assert (ran.out, ran.err.count("\n")) == ("", 1)


def test_another_model_s_folder_is_refused(abyssal_command, folder, tmp_path):
    words = ("eval", folder, "--tasks", "clams", "--limit", "2", "--out", str(tmp_path / "eval"))
    assert abyssal_command(*words).code == 0
    ran = abyssal_command(*words, "--seed", "1")
    assert ran.code == 2
    assert "seed=0, not 1; choose another folder with --out" in ran.err


def test_a_missing_model_is_told(abyssal_command):
    ran = abyssal_command("eval", "nowhere", "--tasks", "blimp")
    assert ran.code == 2
    assert "nowhere: no such folder; run `make demo` first" in ran.err


def test_a_signal_ends_it_and_the_same_command_goes_on(
    abyssal_command, folder, tmp_path, monkeypatch
):
    out = tmp_path / "eval"
    words = ("eval", folder, "--tasks", "clams", "--limit", "300")
    append = Records.append

    def interrupted(records: Records, rows: list[dict[str, object]]) -> None:
        append(records, rows)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "append", interrupted)
        ran = abyssal_command(*words, "--out", str(out))
    assert ran.code == 128 + signal.SIGTERM
    assert "run the same command to go on" in ran.err
    done = (out / "clams.jsonl").read_bytes()
    assert 0 < done.count(b"\n") < 300
    assert abyssal_command(*words, "--out", str(out)).code == 0
    assert (out / "clams.jsonl").read_bytes().startswith(done)
    whole = tmp_path / "whole"
    assert abyssal_command(*words, "--out", str(whole)).code == 0
    for name in ("clams.jsonl", "results.json"):
        assert (whole / name).read_bytes() == (out / name).read_bytes()
