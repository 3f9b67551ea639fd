"""What a person gets wrong costs one line: value, expectation and remedy, with exit code 2."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import abyssal
from abyssal.config import ModelConfig
from abyssal.data.documents import DropReport
from abyssal.data.encoding import encode, write_encoded
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

STORIES = [f"the deep sea is dark and fish number {n} sees the dark\n" for n in range(30)]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(abyssal.__file__).parents[1])}
RECIPE = """
base = "tiny/base"
out = "{root}/out"
tokenizer = "{root}/tokenizer"
tokens = 8192
samples = []

[data]
sources = [{{ name = "fish", shards = "{root}/fish" }}]
held_out = []

[batch]
seq_len = 64
micro_sequences = 1
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with a recipe, shards, a tokenizer, a text and a model, all of them in order."""
    root = tmp_path_factory.mktemp("good")
    tokenizer = Tokenizer.train(STORIES, 320)
    tokenizer.save(root / "tokenizer")
    write_encoded(root / "fish", encode(STORIES, tokenizer), tokenizer, DropReport(total=30))
    (root / "texts.txt").write_text("".join(STORIES))
    config = ModelConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=64,
    )  # fmt: skip
    DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).save(root / "model")
    tokenizer.save(root / "model")
    return root


@pytest.fixture
def place(good, tmp_path) -> Path:
    """A copy of it to spoil."""
    root = tmp_path / "place"
    shutil.copytree(good, root)
    (root / "my.toml").write_text(RECIPE.format(root=root))
    return root


def content(root: Path) -> dict[str, bytes | None]:
    """Every file and folder there is."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def assert_refused(run: Callable, place: Path, words: list[str], named: tuple[str, ...]) -> None:
    """One line on standard error that names the parts, exit code 2, and no file was touched."""
    before = content(place)
    ran = run(*words)
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    for part in named:
        assert part in ran.err
    assert "Traceback" not in ran.err
    assert content(place) == before


class Said:
    """What a real process left behind."""

    def __init__(self, words: tuple[str, ...]):
        done = subprocess.run(
            [sys.executable, "-m", "abyssal", *words],
            env=ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr


def real(*words: str) -> Said:
    """The same command as a process of its own."""
    return Said(words)


# Recipes

RECIPES = {
    "not toml": ("seed = = 3\n", ["my.toml", "not valid TOML", "at line"]),
    "an unknown key": ("optim.learning_rate = 1.0", ["learning_rate", "did you mean optim.lr?"]),
    "a key in no table": ("lr = 1.0", ["unknown key lr", "optim.lr"]),
    "a word for a number": ('optim.lr = "fast"', ["optim.lr", "'fast'", "expected a number"]),
    "a fraction of a step": ("save_every = 2.5", ["save_every", "2.5", "expected a whole number"]),
    "no step at all": ("save_every = 0", ["save_every=0", "expected at least 1"]),
    "a negative rate": ("optim.lr = -1.0", ["lr=-1.0", "expected a positive number"]),
    "an unknown precision": ('precision = "int8"', ["precision", "'int8'", "expected one of"]),
    "an unknown stage": ('stage = "pretrian"', ["'pretrian'", "did you mean pretrain"]),
    "too few tokens": ("tokens = 10", ["tokens=10 ", "one pass of 64 tokens"]),
    "no sources": ("data.sources = []", ["sources are named []", "expected at least one"]),
    "no shards": (
        'data.sources = [{ name = "a", shards = "gone" }]', ["gone", "not a shard folder"],
    ),
    "no tokenizer": ('tokenizer = "gone"', ["gone", "tokenizer.json"]),
    "an unknown preset": ('model.preset = "huge"', ["preset='huge'", "expected one of", "tiny"]),
    "groups that do not fit": ("model.n_group = 5", ["n_group=5", "n_routed_experts"]),
    "rows longer than the model": ("batch.seq_len = 4096", ["seq_len=4096", "max_position"]),
    "a schedule out of order": (
        "optim.schedule = [{ until = 0.9, to = 1.0 }, { until = 0.5, to = 0.1 }]",
        ["optim.schedule", "put them in order"],
    ),
    "a table for a list": ("data.held_out = 3", ["data.held_out", "expected a list"]),
    "a mixture without weight": (
        'data.sources = [{ name = "a", shards = "ROOT/fish", weight = 0.0 }]',
        ["'a' has weight 0.0", "expected a number above 0"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", RECIPES)
def test_a_bad_recipe_is_refused_in_one_line(abyssal_command, place, fault):
    line, named = RECIPES[fault]
    line = line.replace("ROOT", str(place))
    recipe = place / "my.toml"
    if "=" in line and not line.startswith("seed"):
        key, _, value = line.partition("=")
        words = [f"{key.strip()}={value.strip()}"]
    else:
        recipe.write_text(f"{recipe.read_text()}{line}")
        words = []
    assert_refused(abyssal_command, place, ["train", str(recipe), *words], tuple(named))
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("base", "named"),
    [("my.toml", ("circle", "remove one base line")), ("tiny/bsae", ("tiny/bsae", "tiny/base")),
     ("other.toml", ("other.toml", "no such recipe file"))],
)  # fmt: skip
def test_a_base_that_cannot_be_followed_is_refused_in_one_line(abyssal_command, place, base, named):
    recipe = place / "my.toml"
    recipe.write_text(recipe.read_text().replace("tiny/base", base))
    assert_refused(abyssal_command, place, ["train", str(recipe)], named)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["tiny/bsae"], ("tiny/bsae", "did you mean tiny/base")),
     (["nowhere.toml"], ("nowhere.toml", "no such recipe file")),
     (["tiny/base", "optim.lr"], ("optim.lr", "key=value"))],
)  # fmt: skip
def test_a_recipe_that_is_not_there_is_refused_in_one_line(abyssal_command, place, words, named):
    assert_refused(abyssal_command, place, ["train", *words], named)


def test_a_folder_in_use_is_refused_in_one_line(abyssal_command, place):
    words = ["train", str(place / "my.toml"), f"out={place / 'model'}"]
    assert_refused(abyssal_command, place, words, ("holds files of no run", "choose another out"))
    words[-1] = f"out={place / 'texts.txt'}"
    assert_refused(abyssal_command, place, words, ("is a file", "choose another"))


# Checkpoint folders


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WEIGHTS = "model-00001-of-00001.safetensors"
CHECKPOINTS = {
    "no config": (lambda f: (f / "config.json").unlink(), ("config.json", "no such file")),
    "half a config": (lambda f: cut(f / "config.json"), ("config.json", "not valid JSON")),
    "a config of another model": (
        lambda f: edit(f / "config.json", hidden_size=24), ("embed_tokens", "320x16", "320x24")),
    "a config with a word for a size": (
        lambda f: edit(f / "config.json", hidden_size="big"), ("hidden_size", "big")),
    "an impossible config": (
        lambda f: edit(f / "config.json", num_experts_per_tok=9), ("num_experts_per_tok=9",)),
    "half a shard": (lambda f: cut(f / WEIGHTS), (WEIGHTS, "not a whole safetensors file")),
    "no shard": (lambda f: (f / WEIGHTS).unlink(), (WEIGHTS, "not in this folder")),
    "no index": (
        lambda f: (f / "model.safetensors.index.json").unlink(), ("no weights", "index.json")),
    "an index that is a list": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"), ("JSON object",)),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ("tokenizer.json",)),
    "half a tokenizer": (lambda f: cut(f / "tokenizer.json"), ("tokenizer.json",)),
    "nothing": (lambda f: [path.unlink() for path in f.iterdir()], ("config.json", "no such file")),
}  # fmt: skip


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_a_broken_checkpoint_is_refused_in_one_line(abyssal_command, place, fault):
    harm, named = CHECKPOINTS[fault]
    harm(place / "model")
    words = ["generate", str(place / "model"), "--prompt", "the sea"]
    assert_refused(abyssal_command, place, words, named)


@pytest.mark.parametrize("fault", ["no config", "half a shard", "a config of another model"])
def test_so_it_is_where_training_would_start_from_it(abyssal_command, place, fault):
    harm, named = CHECKPOINTS[fault]
    harm(place / "model")
    words = ["train", str(place / "my.toml"), 'stage="sft"', f"init={place / 'model'}"]
    recipe = place / "my.toml"
    text = recipe.read_text().replace('base = "tiny/base"', 'base = "tiny/chat"')
    recipe.write_text(text)
    assert_refused(abyssal_command, place, words, named)


# Data files


def damaged_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"text": "the deep sea"}\n')[:12])


FILES = {
    "nowhere.txt": (lambda path: None, ("nowhere.txt does not exist", "give a file or a folder")),
    "book.pdf": (lambda path: path.write_bytes(b"%PDF"), ("book.pdf", "a folder or one of")),
    "rows.jsonl": (lambda path: path.write_text("{broken\n[1]"), ("no document", "bad JSON")),
    "half.jsonl.gz": (damaged_gzip, ("no document is left", "half.jsonl.gz")),
    "no.jsonl.zst": (lambda path: path.write_bytes(b"not zstd"), ("no document", "damaged file")),
    "latin.txt": (lambda path: path.write_bytes(b"caf\xe9 "), ("no document", "bad UTF-8")),
    "empty": (lambda path: path.mkdir(), ("holds 0 files", "expected one of")),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_broken_data_file_is_refused_in_one_line(abyssal_command, place, name):
    make, named = FILES[name]
    make(place / name)
    words = ["prepare", str(place / name), "--tokenizer", str(place / "tokenizer")]
    assert_refused(abyssal_command, place, [*words, "--out", str(place / "new")], named)
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("rows", "named"),
    [('{"text": "the sea"}\n', ("no document is left", "bad message")),
     ('{"messages": [{"role": "user", "content": "a"}]}\n', ("no assistant message",))],
)  # fmt: skip
def test_so_are_chats_from_which_nothing_can_be_learned(abyssal_command, place, rows, named):
    (place / "chats.jsonl").write_text(rows)
    words = ["prepare", str(place / "chats.jsonl"), "--chats", "--out", str(place / "new")]
    words += ["--tokenizer", str(place / "tokenizer")]
    assert_refused(abyssal_command, place, words, named)


SHARDS = {
    "half the tokens": (lambda f: cut(f / "tokens-00000.bin"), ("tokens-00000.bin", "promises")),
    "no tokens": (lambda f: (f / "tokens-00000.bin").unlink(), ("lacks tokens-00000.bin",)),
    "half the meta file": (lambda f: cut(f / "meta.json"), ("meta.json", "write the folder again")),
    "an altered meta file": (
        lambda f: edit(f / "meta.json", num_documents=7), ("meta.json", "it was altered")),
    "another index": (
        lambda f: (f / "index.bin").write_bytes(bytes((f / "index.bin").stat().st_size)),
        ("index.bin", "does not match its hash")),
}  # fmt: skip


@pytest.mark.parametrize("fault", SHARDS)
def test_broken_shards_are_refused_in_one_line(abyssal_command, place, fault):
    harm, named = SHARDS[fault]
    harm(place / "fish")
    assert_refused(abyssal_command, place, ["train", str(place / "my.toml")], named)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [(("tokenizer",), ("nothing to do", "--inspect")),
     (("tokenizer", "texts.txt", "--out", "new", "--vocab-size", "9"), ("vocab_size=9,", "raise")),
     (("tokenizer", "gone.txt", "--out", "new"), ("gone.txt does not exist",)),
     (("tokenizer", "--inspect", "a", "--folder", "gone"), ("gone", "tokenizer.json")),
     (("prepare", "texts.txt", "--tokenizer", "gone", "--out", "new"), ("gone", "tokenizer.json")),
     (("prepare", "texts.txt", "--tokenizer", "tokenizer", "--out", "fish"), ("not empty",)),
     (("eval", "model", "--bpb", "gone.txt"), ("gone.txt",)),
     (("plan", "huge"), ("huge", "tiny"))],
)  # fmt: skip
def test_other_verbs_refuse_in_one_line_too(abyssal_command, place, monkeypatch, words, named):
    monkeypatch.chdir(place)
    assert_refused(abyssal_command, place, list(words), named)
    assert not (place / "new").exists()


# As real processes


@pytest.mark.parametrize(
    ("words", "named"),
    [(("train", "my.toml", "optim.learning_rate=1"), ("did you mean optim.lr?",)),
     (("generate", "broken", "--prompt", "a"), ("not a whole safetensors file",)),
     (("prepare", "gone.jsonl", "--tokenizer", "tokenizer", "--out", "new"), ("does not exist",))],
)  # fmt: skip
def test_a_real_process_says_the_same(place, monkeypatch, words, named):
    monkeypatch.chdir(place)
    shutil.copytree("model", "broken")
    cut(Path("broken") / WEIGHTS)
    assert_refused(real, place, list(words), named)
