"""The verbs that use a model, run as a person runs them."""

import json
import signal

import pytest

from abyssal.engine.answer_file import AnswerFile
from abyssal.engine.llm import LLM
from abyssal.tokenizer.chat import Message


def test_a_prompt_is_printed_with_its_continuation(abyssal_command, folder):
    words = ("generate", folder, "--prompt", "the sea", "--max-tokens", "12", "--seed", "3")
    ran = abyssal_command(*words)
    done = LLM(folder).generate("the sea", max_tokens=12, seed=3, temperature=0.7)
    assert (ran.code, ran.out) == (0, f"the sea{done.text}\n")
    answer = json.loads(abyssal_command(*words, "--json").out)
    assert answer == {
        "prompt": "the sea",
        "text": done.text,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
    }


def test_a_file_of_prompts_becomes_rows_of_answers_in_order(abyssal_command, folder, tmp_path):
    prompts = ["the sea", "深海", "", "see the dark\nfish"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n\n" for p in prompts))
    options = ("--max-tokens", "9", "--temperature", "0", "--stop", "q", "--stop", "z")
    ran = abyssal_command("generate", folder, "--file", str(file), *options)
    rows = [json.loads(line) for line in ran.out.splitlines()]
    done = LLM(folder).generate(prompts, max_tokens=9, temperature=0, stop=["q", "z"])
    assert [row["prompt"] for row in rows] == prompts
    assert [row["text"] for row in rows] == [completion.text for completion in done]


@pytest.mark.parametrize("verb", [("generate", "--prompt", "a"), ("chat",), ("eval", "--bpb", "f")])
def test_without_a_model_folder_the_demo_is_named(abyssal_command, verb, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = abyssal_command(*verb)
    assert ran.code == 2
    assert "out/demo/model: no such folder; run `make demo` first" in ran.err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("generate",), "--prompt TEXT or --file"),
        (("generate", "--prompt", "a", "--file", "b"), "--prompt TEXT or --file"),
        (("generate", "--prompt", "a", "--out", "b.jsonl"), "--file PROMPTS.jsonl"),
        (("generate", "--file", "nowhere.jsonl"), "nowhere.jsonl"),
        (("generate", "--prompt", "a", "--draft", "1"), "no MTP module"),
        (("generate", "--prompt", "a", "--temperature", "-1"), "temperature=-1"),
        (("generate", "--prompt", "the deep " * 99), "at most 63"),
        (("chat", "--prompt", "the deep " * 99), "at most 63"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(abyssal_command, folder, words, remedy):
    ran = abyssal_command(words[0], folder, *words[1:])
    assert ran.code == 2
    assert remedy in ran.err
    assert (ran.out, ran.err.count("\n")) == ("", 1)


def test_a_row_without_a_prompt_is_named_by_its_line(abyssal_command, folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    for line in ('{"text": "a"}', "{broken", '{"prompt": 3}'):
        file.write_text(f'{{"prompt": "a"}}\n{line}\n')
        ran = abyssal_command("generate", folder, "--file", str(file))
        assert ran.code == 2
        assert "prompts.jsonl:2" in ran.err


@pytest.fixture
def rows(tmp_path):
    """A file of ten questions, one of them too long for the model."""
    asked = [{"prompt": "the sea " * (1 + i % 3), "id": f"row {i}"} for i in range(8)]
    asked += [{"prompt": "the deep " * 99}, {"messages": [{"role": "user", "content": "fish"}]}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return file


OPTIONS = ("--seed", "4", "--max-tokens", "20", "--deterministic")


def test_a_file_of_answers_is_what_a_pipe_would_get(abyssal_command, folder, rows, tmp_path):
    out = tmp_path / "answers.jsonl"
    words = ("generate", folder, "--file", str(rows), *OPTIONS)
    piped = abyssal_command(*words)
    ran = abyssal_command(*words, "--out", str(out), "--json")
    assert piped.code == ran.code == 1  # one row cannot be answered
    assert 'rows with an "error" in place of an answer: 1' in ran.err
    assert out.read_text() == piped.out
    done = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in done] == list(range(10))
    assert [row["index"] for row in done if "error" in row] == [8]
    chat = LLM(folder).chat([Message("user", "fish")], max_tokens=20, temperature=0.7, seed=4 + 9)
    assert done[9]["text"] == chat.text
    said = json.loads(ran.out)
    assert (said["answers"], said["new_answers"], said["new_errors"]) == (10, 10, 1)
    tokens = sum(row.get("completion_tokens", 0) for row in done)
    assert said["new_tokens"] == tokens


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_goes_on_where_it_was(
    abyssal_command, folder, rows, tmp_path, monkeypatch, number
):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    words = ("generate", folder, "--file", str(rows), *OPTIONS)
    abyssal_command(*words, "--out", str(whole))

    append = AnswerFile.append

    def append_and_stop(self, found):
        append(self, found)
        if found:
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerFile, "append", append_and_stop)
        ran = abyssal_command(*words, "--out", str(out))
    assert ran.code == 128 + number
    assert "run the same command to go on" in ran.err
    left = out.read_text()
    assert whole.read_text().startswith(left)
    assert 0 < left.count("\n") < 10
    ran = abyssal_command(*words, "--out", str(out))
    assert f"has {left.count(chr(10))} of 10 answers already" in ran.err
    assert out.read_text() == whole.read_text()


def test_fields_that_mean_nothing_are_named_once(abyssal_command, folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "max_token": 3}\n{"prompt": "b", "max_token": 3}\n')
    ran = abyssal_command("generate", folder, "--file", str(file), "--max-tokens", "2")
    assert (ran.code, ran.err) == (0, "fields without a meaning here: max_token\n")
