"""The whole path on a toy corpus, through the command line: from text to an answer in a minute."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

TOPICS = ("fish", "crab", "whale", "gull", "eel")
BASE = """
base = "tiny/base"
out = "base"
tokenizer = "tokenizer"
tokens = 40960
precision = "float32"
save_every = 20
eval_every = 20
samples = ["The fish"]

[model]
vocab_size = 400
hidden_size = 64
num_hidden_layers = 2
intermediate_size = 128
moe_intermediate_size = 32
max_position_embeddings = 128

[data]
isolate = true
sources = [{ name = "stories", shards = "stories" }]
held_out = [{ name = "stories", shards = "held-out" }]

[batch]
seq_len = 64
sequences = [{ until = 1, to = 8 }]
micro_sequences = 8
"""
CHAT = """
base = "tiny/chat"
out = "chat"
init = "base"
tokenizer = "tokenizer"
tokens = 20480
precision = "float32"
samples = ["Who swims?"]

[data]
sources = [{ name = "chats", shards = "chats" }]
held_out = [{ name = "stories", shards = "held-out" }]

[batch]
seq_len = 64
sequences = [{ until = 1, to = 8 }]
micro_sequences = 8
"""


def stories(number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        f"The {rng.choice(TOPICS)} swam past the {rng.choice(TOPICS)} at {rng.randint(1, 12)} "
        f"and said: good {rng.choice(['morning', 'night'])}, friend number {i}."
        for i in range(number)
    ]


def conversations() -> list[dict]:
    rng = random.Random(3)
    rows = []
    for i in range(60):
        topic = rng.choice(TOPICS)
        rows.append({"messages": [
            {"role": "user", "content": f"Tell me about the {topic}, please, number {i}."},
            {"role": "assistant", "content": f"The {topic} swam."},
        ]})  # fmt: skip
    return rows


@pytest.fixture
def say(abyssal_command, tmp_path, monkeypatch) -> Callable[..., dict]:
    """say("plan", ...): what a verb answers with --json, in a folder with texts and recipes."""
    monkeypatch.chdir(tmp_path)
    write("stories.jsonl", [{"text": story} for story in stories(300, 1)])
    write("held-out.jsonl", [{"text": story} for story in stories(20, 2)])
    write("chats.jsonl", conversations())
    Path("base.toml").write_text(BASE)
    Path("chat.toml").write_text(CHAT)

    def run(*words: str) -> dict:
        ran = abyssal_command(*words, "--json")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    return run


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(folder: str, kind: str) -> list[dict]:
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [row for row in found if row["kind"] == kind]


def test_from_text_to_an_answer(say, abyssal_command):
    # text -> tokenizer -> shards
    made = say("tokenizer", "stories.jsonl", "chats.jsonl", "--out", "tokenizer",
               "--vocab-size", "400")  # fmt: skip
    assert made["vocab_size"] == 400
    for name in ("stories", "held-out"):
        prepared = say("prepare", f"{name}.jsonl", "--tokenizer", "tokenizer", "--out", name)
        assert prepared["documents"] > 5
    chats = say("prepare", "chats.jsonl", "--chats", "--tokenizer", "tokenizer", "--out", "chats")
    assert chats["documents"] == 60

    # shards -> base model
    trained = say("train", "base.toml")
    assert trained["finished"]
    assert trained["last_step"]["step"] == 80
    scores = [row["bits_per_byte"] for row in rows("base", "eval")]
    assert 0 < scores[-1] < 0.5  # untrained, it is above 2

    # base model -> chat model
    tuned = say("train", "chat.toml")
    assert tuned["finished"]
    assert tuned["last_step"]["loss"] < 1.0
    for folder in ("base", "chat"):
        report = Path(folder, "report.html").read_text()
        assert report.startswith("<!doctype html>")
        assert "https://" not in report.split("<body")[0]  # it needs nothing from outside
        (sample,) = rows(folder, "sample")
        assert sample["text"]

    # and what they can do
    words = ("--max-tokens", "16", "--temperature", "0")
    continued = say("generate", "base", "--prompt", "The crab", *words)
    assert continued["text"]
    answered = say("chat", "chat", "--prompt", "Tell me about the whale, please.", *words)
    assert answered["text"].startswith("The ")
    assert answered["finish_reason"] == "stop"
    measured = say("eval", "base", "--bpb", "held-out.jsonl")
    assert measured["bits_per_byte"] == pytest.approx(scores[-1], rel=0.25)
    assert measured["documents"] == 20
    planned = say("plan", "base")
    assert planned["params_total"] == rows("base", "start")[0]["params_total"]
    looked = say("info", "chat")
    assert looked["params_total"] == planned["params_total"]
    assert looked["hashes"] == "as written"
    assert looked["tokenizer_tokens"] == 400
    assert say("info", "--machine")["peak_flops"] > 1e8

    # doing it again does nothing
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    for name in ("base", "chat"):
        told = say("train", f"{name}.toml")
        assert (told["folder"], told["finished"], told["last_step"]) == (name, True, None)
    assert {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.is_file()} == before
