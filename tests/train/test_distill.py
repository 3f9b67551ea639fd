"""Distillation of a toy: what moves the student, what does not, and that a stop changes nothing."""

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

import abyssal
from abyssal.batch import IGNORE
from abyssal.config import ModelConfig
from abyssal.data.documents import DropReport
from abyssal.data.encoding import write_encoded
from abyssal.errors import ConfigError
from abyssal.evals.puzzles import is_held_out, prompt_of, puzzles
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train.distill import begin
from abyssal.train.machine import measure
from abyssal.train.metrics import read_metrics
from abyssal.train.trainer import Trainer
from abyssal.train.training import Training
from tests.train.test_kill import lost_steps, num_steps, serving, wait_for

RECIPE = """
stage = "distill"
out = "{root}/out"
init = "{root}/student"
teacher = "{root}/teacher"
tokenizer = "{root}/tokenizer"
seed = 3
tokens = 2400
on_policy = 0.5
questions = 3
max_tokens = 12
running = 4
held_out = 3
save_every = 2
eval_every = 3
precision = "float32"
tasks = [
  {{ name = "chain_sum", settings = ["max_terms=2", "max_digits=1"] }},
]

[data]
sources = [{{ name = "traces", shards = "{root}/traces" }}]
isolate = true
fim_rate = 0.0

[batch]
seq_len = 64
sequences = [{{ until = 1, to = 4 }}]
micro_sequences = 2

[optim]
lr = 0.003
warmup_steps = 0
schedule = [{{ until = 1, to = 1.0 }}]
weight_decay = 0.0

[balance]
gamma = [{{ until = 1, to = 0.001 }}]
"""
SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def config(hidden_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=400, hidden_size=hidden_size, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=48, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=12, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=160, initializer_range=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a teacher of random weights, a smaller student, and sums solved."""
    root = tmp_path_factory.mktemp("toy")
    asked = puzzles("chain_sum", seed=1, count=30, **SUMS)
    prompts = [prompt_of(one.question) for one in asked]
    tokenizer = Tokenizer.train(prompts * 2, 400)
    tokenizer.save(root / "tokenizer")
    for number, (name, size) in enumerate({"teacher": 40, "student": 24}.items()):
        generator = torch.Generator().manual_seed(number)
        DeepSeekV3(config(size)).initialize(generator).save(root / name)
        tokenizer.save(root / name)
    traces = []
    for prompt, one in zip(prompts, asked, strict=True):
        before = [tokenizer.bos_token_id, *tokenizer.encode(prompt)]
        solved = [*tokenizer.encode(f" <answer> {one.answer} </answer>"), tokenizer.eos_token_id]
        traces.append(([*before, *solved], [False] * len(before) + [True] * len(solved)))
    write_encoded(root / "traces", traces, tokenizer, DropReport(total=len(traces)))
    (root / "toy.toml").write_text(RECIPE.format(root=root))
    return root / "toy.toml"


@pytest.fixture
def build(toy: Path, tmp_path: Path) -> Callable[..., Training]:
    """build(changes): the toy run, its recipe changed, in the test's own folder."""

    def run(changes: dict | None = None, out: str = "run") -> Training:
        return Training(toy, {"out": tmp_path / out, **(changes or {})})

    return run


@pytest.fixture
def loop(build, toy) -> Callable[..., Trainer]:
    """The loop itself, without a folder."""

    def made(changes: dict | None = None) -> Trainer:
        tokenizer = Tokenizer.load(toy.parent / "tokenizer")
        return begin(build(changes).run, tokenizer, measure("float32"))

    return made


def state(folder: Path) -> dict[str, torch.Tensor]:
    return DeepSeekV3.load(folder).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def figures(folder: Path) -> list[dict]:
    """Every row of steps and examinations, but for what the clock said."""
    metrics = read_metrics(folder)
    timeless = {"tokens_per_s", "elapsed_s", "mfu"}
    rows = [*metrics.steps, *metrics.examinations, *metrics.samples]
    return [
        {name: getattr(row, name) for name in row.__dataclass_fields__ if name not in timeless}
        for row in rows
    ]


def tokens_of(passages) -> list[list[int]]:
    return [passage.batch.tokens.tolist() for passage in passages]


def test_a_run_to_its_end(build, toy):
    run = build()
    rows = list(run.steps())
    assert run.is_done
    metrics = read_metrics(run.folder)
    assert metrics.start.stage == "distill"
    assert {row.step for row in metrics.examinations} >= {0, 3, rows[-1].step}
    assert not same(state(run.folder), state(toy.parent / "student"))
    for row in rows:
        assert row.loss > 0
        assert {"loss/traces", "loss/student", "student/accuracy"} <= row.figures.keys()
        assert row.figures["student/length"] <= 12
    assert "Distillation" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_the_student_comes_closer_to_its_teacher(build, kind, on_policy):
    changes = {"divergence": kind, "on_policy": on_policy, "tokens": 12_000, "eval_every": 1000}
    rows = list(build({**changes, "optim": {"lr": 0.01}}).steps())
    first, last = (sum(row.loss for row in some) / 4 for some in (rows[:4], rows[-4:]))
    assert last < 0.8 * first


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_who_is_the_teacher_learns_nothing(build, toy, on_policy):
    teacher = toy.parent / "teacher"
    still = {"gamma": [{"until": 1, "to": 0.0}], "alpha": 0.0}
    run = build({"init": teacher, "on_policy": on_policy, "balance": still, "tokens": 900})
    rows = list(run.steps())
    assert [row.loss for row in rows] == [0.0] * len(rows)
    assert [row.grad_norm for row in rows] == [0.0] * len(rows)
    assert same(state(run.folder), state(teacher))


def test_the_gradient_is_the_definitions_and_the_teacher_has_none(loop):
    """Whole logits of both models, on one pass of each kind."""
    run = loop({"divergence": "jsd", "beta": 0.3, "temperature": 1.5, "balance": {"alpha": 0.0}})
    objective = run.objective
    for passage in objective.draw(2):
        batch = passage.batch
        rows = batch.labels != IGNORE
        whole = objective.model.logits(batch)[rows]
        theirs = objective.teacher.logits(batch)[rows].detach()
        log_p, log_q = (x.div(1.5).log_softmax(-1) for x in (theirs, whole))
        middle = (0.3 * log_p.exp() + 0.7 * log_q.exp()).log()
        each = 0.3 * (log_p.exp() * (log_p - middle)) + 0.7 * (log_q.exp() * (log_q - middle))
        parameters = [p for p in objective.model.parameters() if p.requires_grad]
        expected = torch.autograd.grad(each.sum(), parameters, allow_unused=True)
        found = passage.score(objective.model(batch), batch, balance=False)
        torch.testing.assert_close(found.main, each.sum())
        mine = torch.autograd.grad(found.main, parameters, allow_unused=True)
        for one, other in zip(mine, expected, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())


def test_only_answers_are_learned(loop, toy):
    tokenizer = Tokenizer.load(toy.parent / "tokenizer")
    traces, own = loop().objective.draw(2)
    assert (traces.name, own.name) == ("traces", "student")
    for passage in (traces, own):
        labels = passage.batch.labels
        assert 0 < passage.weight < len(labels) / 2
        starts = passage.batch.cu_seqlens[:-1]
        assert (labels[starts] == IGNORE).all()
    # a label is the token behind, where the sequence goes on
    follows = own.batch.tokens[1:][(own.batch.labels != IGNORE)[:-1]]
    labels = own.batch.labels[:-1][(own.batch.labels != IGNORE)[:-1]]
    inside = ~torch.isin(torch.arange(1, len(own.batch.tokens)), own.batch.cu_seqlens)
    inside = inside[(own.batch.labels != IGNORE)[:-1]]
    assert torch.equal(follows[inside], labels[inside])
    said = tokenizer.decode(traces.batch.labels[traces.batch.labels != IGNORE].tolist())
    assert "Calculate" not in said
    assert "<answer>" in said


@pytest.mark.parametrize(("share", "own"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_a_share_of_the_passes_is_the_students(loop, share, own):
    objective = loop({"on_policy": share}).objective
    drawn = [passage.name for _ in range(4) for passage in objective.draw(3)]
    assert drawn.count("student") == own


def test_draws_are_functions_of_counters(loop):
    """The same place gives the same sequences; the next draw gives others."""
    one, other = loop({"on_policy": 1.0}).objective, loop({"on_policy": 1.0}).objective
    place = json.loads(json.dumps(one.place()))
    first, second = tokens_of(one.draw(2)), tokens_of(one.draw(2))
    assert first != second
    assert tokens_of(other.draw(2)) == first
    later = json.loads(json.dumps(other.place()))
    assert tokens_of(other.draw(2)) == second
    other.go_to(place)
    assert tokens_of(other.draw(2)) == first
    one.go_to(later)
    assert tokens_of(one.draw(2)) == second


def test_the_student_writes_with_the_weights_it_has_now(loop):
    objective = loop({"on_policy": 1.0, "sampling_temperature": 0.01}).objective
    place = objective.place()
    before = tokens_of(objective.draw(1))
    with torch.no_grad():
        objective.model.lm_head.weight.copy_(objective.model.lm_head.weight.flip(0))
    objective.go_to(place)
    assert tokens_of(objective.draw(1)) != before


def test_no_question_held_out_is_ever_asked(loop):
    questions = loop().objective.questions
    assert not any(is_held_out(one.question) for one in questions.next(60, 0))
    assert all(is_held_out(one.question) for one in questions.held_out)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_stopped_run_goes_on_as_if_nothing_was(build, step):
    whole = build(out="whole")
    list(whole.steps())
    stopped = build()
    for row in stopped.steps():
        if row.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.stopped_by == signal.SIGTERM
    list(build().steps())
    assert same(state(whole.folder), state(stopped.folder))
    assert figures(whole.folder) == figures(stopped.folder)


def test_a_run_dropped_between_two_saves_repeats_its_steps(build):
    whole = build(out="whole")
    list(whole.steps())
    dropped = build()
    steps = dropped.steps()
    assert len(list(islice(steps, 3))) == 3
    steps.close()
    list(build().steps())
    assert same(state(whole.folder), state(dropped.folder))
    assert figures(whole.folder) == figures(dropped.folder)


@pytest.mark.parametrize("changes", [{"on_policy": 1.0, "data": "none"}, {"tasks": []}])
def test_what_is_not_asked_for_need_not_be_there(build, changes):
    run = build({"on_policy": 0.0, "tokens": 600, **changes})
    list(run.steps())
    assert run.is_done
    assert bool(read_metrics(run.folder).examinations) == ("data" in changes)


def test_adapters_learn_from_a_teacher_too(build, toy):
    still = {"gamma": [{"until": 1, "to": 0.0}]}
    traces = {"on_policy": 0.0, "tasks": [], "tokens": 900}
    run = build({"lora": {"rank": 2}, "balance": still, **traces})
    list(run.steps())
    assert not same(state(run.folder), state(toy.parent / "student"))
    assert (run.folder / "adapter").is_dir()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"on_policy": 1.5}, "on_policy=1.5, expected a share"),
        ({"data": "none"}, "there is no \\[data\\]; name some, or set on_policy = 1"),
        ({"tasks": []}, "no tasks whose questions"),
        ({"divergence": "jsd", "beta": 0.0}, "beta=0.0, expected a number between 0 and 1"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"sampling_temperature": -1.0}, "sampling_temperature=-1"),
        ({"questions": 0}, "questions=0"),
        ({"max_tokens": 160}, "prompts included; lower them"),
        ({"batch": {"seq_len": 200}}, "lower seq_len"),
        ({"teacher": "nowhere"}, "nowhere"),
        ({"lora": {"rank": 2}, "balance": {"gamma": [{"until": 1, "to": 0.0}]}}, "plain weights"),
    ],
)
def test_what_cannot_work_is_refused(build, changes, said):
    with pytest.raises(abyssal.errors.AbyssalError, match=said):
        list(build(changes).steps())


def test_another_tokenizer_or_vocabulary_is_refused(build, toy, tmp_path):
    tokenizer = Tokenizer.load(toy.parent / "tokenizer")
    for name, words, size in (("words", 380, 400), ("size", 400, 410)):
        made = Tokenizer.train(["other words, counted one by one"] * 9, words)
        DeepSeekV3(replace(config(24), vocab_size=size)).save(tmp_path / name)
        (made if name == "words" else tokenizer).save(tmp_path / name)
    with pytest.raises(ConfigError, match=r"another tokenizer .* or distill by traces"):
        list(build({"teacher": tmp_path / "words"}).steps())
    with pytest.raises(ConfigError, match=r"vocab_size=410 .* 400, expected the same"):
        list(build({"teacher": tmp_path / "size"}).steps())


@pytest.mark.slow
def test_killed_at_random_and_run_again_it_ends_where_it_would_have(toy, tmp_path):
    lot, whole, out = random.Random(7), tmp_path / "whole", tmp_path / "killed"
    words = ["train", toy, "tokens=24000", "eval_every=20"]
    with serving(tmp_path / "log") as server:
        server.start(*words, f"out={whole}")
        assert server.wait() == 0
        for more in [lot.randint(1, 9) for _ in range(3)]:
            goal = num_steps(out) + more
            child = server.start(*words, f"out={out}")
            wait_for(lambda goal=goal: num_steps(out) >= goal)
            os.kill(child, signal.SIGKILL)
            assert server.wait() == -signal.SIGKILL
        server.start(*words, f"out={out}")
        assert server.wait() == 0
    assert same(state(whole), state(out))
    assert figures(whole) == figures(out)
    assert max(lost_steps(out)) > 0
