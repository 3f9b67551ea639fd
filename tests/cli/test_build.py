"""The verbs that build, run as a person runs them."""

import json
import os
import signal
from pathlib import Path

import pytest

from abyssal.data.shards import Shards
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import training

STORIES = [f"the deep sea is dark, and fish number {n} sees the dark.\n" for n in range(30)]
RECIPE = """
base = "tiny/base"
out = "out"
tokenizer = "tokenizer"
tokens = 2560
precision = "float32"
minutes = "none"
save_every = 2
eval_every = 4
samples = []

[model]
vocab_size = 340
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 48
moe_intermediate_size = 16

[data]
sources = [{ name = "fish", shards = "shards" }]
held_out = []

[batch]
seq_len = 64
sequences = [{ until = 1, to = 4 }]
micro_sequences = 4
"""


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """The working directory, with a text and a recipe."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"text": story}) for story in [*STORIES, STORIES[0]]]
    (tmp_path / "texts.jsonl").write_text("\n".join([*rows, "{broken"]))
    (tmp_path / "my.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def ready(shop, abyssal_command):
    """... and a tokenizer and shards."""
    texts = ("texts.jsonl", "--out")
    assert abyssal_command("tokenizer", *texts, "tokenizer", "--vocab-size", "340").code == 0
    assert abyssal_command("prepare", *texts, "shards", "--tokenizer", "tokenizer").code == 0
    return shop


def test_a_tokenizer_is_trained_and_what_it_read_is_said(shop, abyssal_command):
    words = ("tokenizer", "texts.jsonl", "--out", "made/tok", "--vocab-size", "340")
    ran = abyssal_command(*words, "--json")
    said = json.loads(ran.out)
    assert (ran.code, said["folder"], said["vocab_size"]) == (0, "made/tok", 340)
    assert (said["total"], said["kept"], said["dropped"]) == (32, 31, {"bad JSON": 1})
    assert Tokenizer.load("made/tok").vocab_size == 340


def test_a_tokenizer_shows_how_it_cuts_a_text(ready, abyssal_command):
    words = ("tokenizer", "--inspect", "the deep 海", "--folder", "tokenizer")
    said = json.loads(abyssal_command(*words, "--json").out)
    tokenizer = Tokenizer.load("tokenizer")
    assert said["ids"] == tokenizer.encode("the deep 海")
    assert said["tokens"] == len(said["ids"]) == len(said["pieces"])
    assert "the" in said["pieces"]
    assert abyssal_command(*words).out.count("\n") == 3


def test_texts_are_prepared_and_what_was_dropped_is_said(ready, abyssal_command):
    words = ("prepare", "texts.jsonl", "--tokenizer", "tokenizer", "--out", "again", "--json")
    said = json.loads(abyssal_command(*words).out)
    shards = Shards("again")
    assert (said["documents"], said["tokens"]) == (len(shards), shards.num_tokens)
    assert said["total"] == 32
    assert said["kept"] == len(shards) == 32 - sum(said["dropped"].values())
    assert {"bad JSON", "exact duplicate"} <= said["dropped"].keys()


def test_chats_are_prepared_with_masks(ready, abyssal_command):
    chat = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "fish"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": chat}))
    words = ("prepare", "chats.jsonl", "--chats", "--tokenizer", "tokenizer", "--out", "chats")
    assert abyssal_command(*words, "--layout", "r1").code == 0
    tokens, mask = Shards("chats").tokens(0), Shards("chats").mask(0)
    assert Tokenizer.load("tokenizer").decode(tokens[mask.astype(bool)].tolist()) == "fish"


def test_a_recipe_is_run_once_and_then_is_done(ready, abyssal_command):
    ran = abyssal_command("train", "my.toml", "seed=5", "--json")
    said = json.loads(ran.out)
    assert (ran.code, said["folder"], said["finished"]) == (0, "out", True)
    assert (said["last_step"]["step"], said["last_step"]["tokens"]) == (10, 2560)
    again = abyssal_command("train", "my.toml", "seed=5")
    assert again.code == 0
    assert "out is done already" in again.err
    assert "out: the model folder; its report is out/report.html" in again.out
    assert Path("out/report.html").is_file()
    other = abyssal_command("train", "my.toml")
    assert other.code == 2
    assert "another recipe (seed differ" in other.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_asked_to_stop_saves_says_how_to_go_on_and_does(
    ready, abyssal_command, monkeypatch, number
):
    write = training.Journal.write

    def interrupt(journal, row):
        write(journal, row)
        if getattr(row, "step", None) == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(training.Journal, "write", interrupt)
        ran = abyssal_command("train", "my.toml")
    assert ran.code == 128 + number
    assert "stopped and saved in out; run the same command to go on" in ran.err
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 3
    said = json.loads(abyssal_command("train", "my.toml", "--json").out)
    assert (said["finished"], said["last_step"]["step"]) == (True, 10)


def test_a_stop_in_the_last_step_still_finishes(ready, abyssal_command, monkeypatch):
    write = training.Journal.write

    def interrupt(journal, row):
        write(journal, row)
        if type(row).__name__ == "Step" and row.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Journal, "write", interrupt)
    ran = abyssal_command("train", "my.toml")
    assert ran.code == 0
    assert Path("out/done.json").is_file()


def test_a_run_that_diverges_ends_in_one_line(ready, abyssal_command):
    words = ("optim.lr=1e30", 'optim.matrices="adamw"', "optim.warmup_steps=0")
    ran = abyssal_command("train", "my.toml", *words)
    assert ran.code == 2
    last = ran.err.splitlines()[-1]
    assert last.startswith("error: training diverged at step ")
    assert "lower optim.lr=1e+30" in last
