"""A toy run: a tokenizer of 330 words, a few dozen fish, and a recipe of twelve short steps."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from abyssal.checkpoint import weights
from abyssal.config import ModelConfig
from abyssal.data.documents import DropReport
from abyssal.data.encoding import encode, write_encoded
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message
from abyssal.train import history
from abyssal.train.metrics import Metrics, read_metrics
from abyssal.train.training import Training

RECIPE = """
stage = "pretrain"
out = "{root}/out"
tokenizer = "{root}/tokenizer"
seed = 3
tokens = {tokens}
precision = "float32"
mtp_lambda = [{{ until = 1, to = 0.3 }}]
save_every = 4
eval_every = 5

[model]
vocab_size = 330
hidden_size = 32
num_hidden_layers = 2
first_k_dense_replace = 1
intermediate_size = 48
num_nextn_predict_layers = 0
num_attention_heads = 2
q_lora_rank = "none"
kv_lora_rank = 12
qk_rope_head_dim = 8
qk_nope_head_dim = 8
v_head_dim = 8
moe_intermediate_size = 16
n_routed_experts = 4
num_experts_per_tok = 2
n_group = 2
topk_group = 2
max_position_embeddings = 64

[data]
sources = [{{ name = "fish", shards = "{root}/data/fish" }}]
held_out = [{{ name = "crabs", shards = "{root}/data/crabs" }}]

[batch]
seq_len = 16
sequences = [{{ until = 1, to = 4 }}]
micro_sequences = 4

[optim]
matrices = "muon"
lr = 0.01
warmup_steps = 3
schedule = [{{ until = 1, start = 1.0, to = 0.1, shape = "cosine" }}]

[balance]
gamma = [{{ until = 1, to = 0.01 }}]
"""
TUNING = """
out = "{root}/tuned"
init = "{root}/base"
tokenizer = "{root}/tokenizer"
seed = 3
precision = "float32"
mtp_lambda = [{{ until = 1, to = 0.0 }}]
save_every = 4
eval_every = 5

[optim]
lr = 0.003
warmup_steps = 3
schedule = [{{ until = 1, start = 1.0, to = 0.1, shape = "cosine" }}]

[balance]
gamma = [{{ until = 1, to = 0.0 }}]
"""
STAGES = {
    "sft": """
tokens = {tokens}

[data]
isolate = true
fim_rate = 0.0
sources = [{{ name = "talk", shards = "{root}/data/talk" }}]
held_out = [{{ name = "crabs", shards = "{root}/data/crabs" }}]

[batch]
seq_len = 32
sequences = [{{ until = 1, to = 2 }}]
micro_sequences = 2
""",
    "dpo": """
[data]
sources = [{{ name = "pairs", rows = "{root}/pairs.jsonl" }}]
held_out = [{{ name = "others", rows = "{root}/others.jsonl" }}]

[batch]
seq_len = 64
sequences = [{{ until = 1, to = 4 }}]
micro_sequences = 2
""",
}
STAGES["reward"] = STAGES["dpo"]
STEP = 64  # tokens of a step of the recipe
STEPS = 12


def texts(number: int, seed: int) -> list[str]:
    """Short stories about fish."""
    rng = random.Random(seed)
    words = ["fish", "crab", "sea", "deep", "swam", "met", "dark", "blue", "and", "the", "a"]
    return [" ".join(rng.choices(words, k=rng.randint(4, 30))) + f" {i}.\n" for i in range(number)]


def pairs(number: int, seed: int) -> list[dict[str, object]]:
    """Answers that keep to what was asked for, and answers that do not."""
    rng, rows = random.Random(seed), []
    for _ in range(number):
        asked, other = rng.sample(["fish", "crab"], 2)
        seas = ["dark sea", "blue sea", "deep blue sea"]
        told = [f"the {who} swam in the {rng.choice(seas)}" for who in (asked, other)]
        rows.append({"prompt": f"a {asked}", "chosen": told[0], "rejected": told[1]})
    return rows


class Course(NamedTuple):
    """What runs start from."""

    root: Path
    recipe: Path
    tokenizer: Tokenizer


class Finished(NamedTuple):
    """What a run left behind."""

    folder: Path
    weights: dict[str, bytes]  # by internal name, as bytes
    metrics: Metrics

    @property
    def figures(self) -> list[history.Step]:
        """The rows of all steps without what the clock said."""
        timeless = {"tokens_per_s": 0.0, "mfu": None, "elapsed_s": 0.0}
        names = [name for name in history.Step.__dataclass_fields__ if name not in timeless]
        return [
            history.Step(**{name: getattr(row, name) for name in names}, **timeless)
            for row in self.metrics.steps
        ]


@pytest.fixture(scope="session")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """Tokenizer, shards and recipe."""
    root = tmp_path_factory.mktemp("course")
    tokenizer = Tokenizer.train(texts(200, 1), 330)
    tokenizer.save(root / "tokenizer")
    for name, size in (("fish", 40), ("crabs", 3)):
        stories = texts(size, size)
        folder = root / "data" / name
        write_encoded(folder, encode(stories, tokenizer), tokenizer, DropReport(total=size))
    for name, seed in (("talk", 5), ("gossip", 6)):
        chats = [
            [Message("user", str(row["prompt"])), Message("assistant", str(row["chosen"]))]
            for row in pairs(30, seed)
        ]
        write_encoded(root / "data" / name, encode(chats, tokenizer), tokenizer, DropReport())
    for name, size in (("pairs", 24), ("others", 7)):
        lines = [json.dumps(row) for row in pairs(size, size)]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
    recipe = root / "toy.toml"
    recipe.write_text(RECIPE.format(root=root, tokens=STEPS * STEP))
    for stage, own in STAGES.items():
        text = f'stage = "{stage}"\n' + TUNING.partition("\n[optim]")[0] + own
        text += "\n[optim]" + TUNING.partition("\n[optim]")[2]
        if stage != "sft":
            text = text.replace("[data]", "epochs = 2.0\n\n[data]", 1)
        (root / f"{stage}.toml").write_text(text.format(root=root, tokens=STEPS * STEP))
    return Course(root, recipe, tokenizer)


@pytest.fixture(scope="session")
def base(course: Course) -> Path:
    """The folder of a small trained model, which the recipes of `tune` start from."""
    training = Training(course.recipe, {"out": course.root / "base"})
    list(training.steps())
    return training.folder


@pytest.fixture
def tune(course: Course, base: Path, tmp_path: Path) -> Callable[..., Training]:
    """tune("dpo", changes, out="name"): a run that goes on with `base`."""

    def build(stage: str, changes: dict | None = None, out: str = "run") -> Training:
        return Training(
            course.root / f"{stage}.toml", {"out": tmp_path / out, "init": base, **(changes or {})}
        )

    return build


@pytest.fixture
def begin(course: Course, tmp_path: Path) -> Callable[..., Training]:
    """begin(changes, out="name"): the toy run, its recipe changed, in the test's own folder."""

    def build(changes: dict | None = None, out: str = "run") -> Training:
        return Training(course.recipe, {"out": tmp_path / out, **(changes or {})})

    return build


@pytest.fixture(scope="session")
def look() -> Callable[[Path], Finished]:
    """look(folder): a finished run, read from its folder."""

    def read(folder: Path) -> Finished:
        config = ModelConfig.load(folder)
        with torch.device("meta"):
            shapes = {name: t.shape for name, t in DeepSeekV3(config).state_dict().items()}
        tensors = weights.read(folder, config, shapes)
        plain = {
            name: tensor.contiguous().view(torch.uint8).numpy().tobytes()
            for name, tensor in tensors.items()
        }
        return Finished(folder, plain, read_metrics(folder))

    return read


@pytest.fixture
def finish(
    begin: Callable[..., Training], look: Callable[[Path], Finished]
) -> Callable[..., Finished]:
    """The same, taken to its end (or on to it, from wherever it stopped)."""

    def run(changes: dict | None = None, out: str = "run") -> Finished:
        training = begin(changes, out)
        list(training.steps())
        assert training.is_done
        return look(training.folder)

    return run


@pytest.fixture
def stop() -> Callable[[Training, int], None]:
    """stop(training, step): take a run to a step and ask it to stop there, as a terminal would."""

    def run(training: Training, step: int) -> None:
        for row in training.steps():
            if row.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
        assert training.stopped_by == signal.SIGTERM
        assert not training.is_done

    return run


@pytest.fixture
def drop() -> Callable[[Training, int], None]:
    """drop(training, step): ... and no further; what is not saved is lost, as if it were killed."""

    def run(training: Training, step: int) -> None:
        steps = training.steps()
        assert step in (row.step for row in steps)  # which stops at that step
        steps.close()

    return run
