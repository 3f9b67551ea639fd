"""Reinforcement of a toy: what moves it, what does not, and that a stop changes nothing."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

import abyssal
from abyssal.batch import IGNORE, Batch
from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.evals.puzzles import prompt_of
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import worked
from abyssal.train.lessons import Learner, Lesson, micro_batches
from abyssal.train.machine import measure
from abyssal.train.metrics import read_metrics
from abyssal.train.reinforcement import MOST_BARS, Reinforcement, _histogram
from abyssal.train.reinforcer import Reinforcer
from abyssal.train.training import begin, train

RECIPE = """
stage = "grpo"
out = "{root}/out"
init = "{root}/base"
seed = 3
steps = 6
questions = 3
answers = 4
mini_batches = 2
max_tokens = 24
micro_tokens = 300
running = 8
held_out = 3
save_every = 2
eval_every = 3
reference_every = 3
gamma = 0.001
precision = "float32"
tasks = [
  {{ name = "chain_sum", settings = ["max_terms=2", "max_digits=1"] }},
]

[rewards]
accuracy = 1.0
format = 1.0
language = 1.0

[objective]
kl = 0.05

[optim]
lr = 0.003
warmup_steps = 0
weight_decay = 0.0
"""
CLOCK = {"rollout_s", "train_s"}


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and a model of random weights whose texts earn what chance gives."""
    root = tmp_path_factory.mktemp("toy")
    prompt = prompt_of("State the final answer to the following arithmetic problem: 4 - 1 =")
    words = "the and of to is not der die und was"
    tokenizer = Tokenizer.train([prompt] * 3 + [words] * 9, 400)
    config = ModelConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=48, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=12, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=160, initializer_range=0.1,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(1))
    teach(model, tokenizer, prompt, words.split())
    model.save(root / "base")
    tokenizer.save(root / "base")
    (root / "toy.toml").write_text(RECIPE.format(root=root))
    return root / "toy.toml"


def teach(model: DeepSeekV3, tokenizer: Tokenizer, prompt: str, words: list[str]) -> None:
    """A few words of two languages after the prompt, of any number, and sometimes the form."""
    lot, optimizer = random.Random(5), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        rows = []
        for _ in range(8):
            said = " ".join(lot.choices(words, k=lot.randint(1, 6)))
            form = f" <think> {said} </think> <answer> {lot.randint(0, 9)} </answer>"
            text = form if lot.random() < 0.5 else f" {said}"
            rows.append(tokenizer.encode(prompt + text, bos=True, eos=True))
        batch = Batch.from_sequences(rows)
        logits = model.logits(batch)
        labels = batch.tokens.roll(-1)
        labels[batch.cu_seqlens[1:] - 1] = IGNORE
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def build(toy: Path, tmp_path: Path) -> Callable[..., Reinforcement]:
    """build(changes, judge): the toy run, its recipe changed, in the test's own folder."""

    def run(changes: dict | None = None, judge=None, out: str = "run") -> Reinforcement:
        return Reinforcement(toy, {"out": tmp_path / out, **(changes or {})}, judge)

    return run


@pytest.fixture
def policy(build) -> Callable[..., Reinforcer]:
    """The loop itself, without a folder."""

    def made(changes: dict | None = None, judge=None) -> Reinforcer:
        run = build(changes, judge)
        return Reinforcer(run.run, run._start()[1], run._start()[0], measure("float32"), judge)

    return made


def state(folder: Path) -> dict[str, torch.Tensor]:
    return DeepSeekV3.load(folder).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def figures(folder: Path) -> list[dict]:
    """Every row of steps, draws and examinations, but for what the clock said."""
    metrics = read_metrics(folder)
    timeless = {"tokens_per_s", "elapsed_s", *CLOCK}
    rows = [*metrics.steps, *metrics.reinforcements, *metrics.examinations, *metrics.samples]
    return [
        {name: getattr(row, name) for name in row.__dataclass_fields__ if name not in timeless}
        for row in rows
    ]


def test_a_run_to_its_end(build, toy):
    run = build()
    rows = list(run.steps())
    assert run.is_done
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]
    metrics = read_metrics(run.folder)
    assert metrics.start.stage == "grpo"
    assert [row.step for row in metrics.examinations] == [0, 3, 6]
    assert not same(state(run.folder), state(toy.parent / "base"))
    assert {"report.html", "done.json", "recipe.json"} <= {p.name for p in run.folder.iterdir()}
    assert not (run.folder / "trainer").exists()
    assert "Reinforcement learning" in (run.folder / "report.html").read_text()
    for row in rows:
        assert row.answers == 12
        assert 0 < row.length <= row.longest <= 24
        assert row.gap_max < 1e-3  # both in float32: rounding and nothing else
        assert row.routing < 0.05
        assert row.kl is None or row.kl >= 0
        assert row.entropy > 0
    assert list(build().steps()) == []  # done already


@pytest.mark.parametrize("step", [1, 3, 4])
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
    assert len(list(islice(steps, 5))) == 5
    steps.close()
    list(build().steps())
    assert same(state(whole.folder), state(dropped.folder))
    assert figures(whole.folder) == figures(dropped.folder)


def test_equal_rewards_move_nothing(build, toy):
    nothing = {"rewards": {"accuracy": 0, "format": 0, "language": 0}, "steps": 2}
    run = build({**nothing, "objective": {"kl": 0.5}})
    rows = list(run.steps())
    assert all(row.skipped == row.groups == 3 for row in rows)
    assert same(state(run.folder), state(toy.parent / "base"))


def test_what_is_rewarded_becomes_frequent(build):
    """Twenty-five short steps, a reward for one word; nothing else tells the model of it."""

    def judge(_, text):
        return text.split().count("und") / (len(text.split()) + 1)

    rewards = {"accuracy": 0, "format": 0, "language": 0, "model": 1}
    changes = {"steps": 25, "rewards": rewards, "answers": 8, "optim": {"lr": 0.01}}
    rows = list(build({**changes, "objective": {"kl": 0}}, judge).steps())
    first, last = (sum(row.reward for row in some) / 5 for some in (rows[:5], rows[-5:]))
    assert last > 2 * first


def test_a_reward_that_is_no_number_is_walled_off(build, toy):
    run = build({"rewards": {"model": 1}, "steps": 2}, lambda _, text: math.nan)
    list(run.steps())
    assert same(state(run.folder), state(toy.parent / "base"))
    events = read_metrics(run.folder).events
    assert [event.what for event in events] == ["update skipped"] * 4


def test_a_row_of_bad_steps_goes_back_and_then_gives_up(build):
    calls = []

    def judge(_, text):  # sound for the first steps, and never again
        calls.append(text)
        return 1.0 * len(text) if len(calls) < 60 else math.inf

    changes = {"rewards": {"model": 1}, "steps": 40, "guard": {"patience": 2}}
    run = build(changes, judge)
    with pytest.raises(ConfigError, match="diverged"):
        list(run.steps())
    rewinds = [e for e in read_metrics(run.folder).events if e.what == "rewind"]
    assert len(rewinds) == 3


def test_old_log_probabilities_are_the_engines(policy):
    learner_of = policy()
    draw = learner_of.exercises.draw()
    answers = [answer for group in draw.groups for answer in group.answers]
    lessons = [Lesson(answer, 1.0, True) for answer in answers]
    learner: Learner = learner_of.learner
    for lesson, found in zip(lessons, learner.before(lessons), strict=True):
        expected = torch.tensor(lesson.answer.logprobs)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    parts = list(micro_batches(lessons, 300))
    assert len(parts) > 1
    assert [i for part in parts for i in part] == list(range(len(lessons)))


def test_micro_batches_do_not_change_a_step(policy):
    """The gradient of a mini-batch is the sum of its parts."""
    found = []
    for size in (10**6, 300, 1):
        one = policy({"micro_tokens": size})
        draw = one.exercises.draw()
        lessons = [
            Lesson(answer, gain, True)
            for group in draw.groups
            for answer, gain in zip(group.answers, (1.0, -1.0, 0.5, -0.5), strict=True)
        ]
        one.learner.accumulate(lessons, [None] * len(lessons), one.optimizer)
        found.append(one.optimizer.grads)
    for name, grad in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], grad, atol=2e-6, rtol=1e-3)


def test_dynamic_sampling_draws_until_groups_differ(policy):
    """A judge that sees a difference in every third question only."""
    asked: dict[str, int] = {}

    def judge(prompt, text):
        number = asked.setdefault(prompt, len(asked))
        return len(asked) * 0.0 + (sum(map(ord, text)) if number % 3 == 0 else 0)

    rewards = {"accuracy": 0, "format": 0, "language": 0, "model": 1}
    one = policy({"rewards": rewards, "dynamic": 4}, judge)
    draw = one.exercises.draw()
    assert len(draw.chosen) == 3
    assert len(draw.groups) > 3
    bounded = policy({"rewards": {**rewards, "model": 0}, "dynamic": 2})
    draw = bounded.exercises.draw()
    assert len(draw.groups) == 9
    assert not draw.chosen


def test_cut_off_answers_teach_nothing_where_they_are_masked(build, toy):
    changes = {"mask_overlong": True, "max_tokens": 1, "steps": 1, "gamma": 0}
    rewards = {"model": 1}
    one = {**changes, "rewards": rewards, "objective": {"kl": 0}}
    run = build(one, lambda _, text: float(len(text)))
    (row,) = run.steps()
    assert row.overlong == 1
    assert row.skipped < row.groups
    assert same(state(run.folder), state(toy.parent / "base"))


def test_a_look_writes_nothing_and_refuses_where_all_earn_the_same(build):
    run = build()
    look = run.look(questions=5)
    assert not run.folder.exists()
    assert look.questions == 5
    assert sum(look.histogram.values()) == 20
    assert look.differing > 0
    look.check()
    same_for_all = build({"rewards": {"accuracy": 1, "format": 1, "language": 0}}).look(5)
    assert same_for_all.histogram == {0.0: 20}
    with pytest.raises(ConfigError, match="no gradient would flow; take easier tasks"):
        same_for_all.check()


def test_a_histogram_of_many_rewards_is_of_steps():
    assert _histogram([2.0, 0.0, 2.0]) == {0.0: 1, 2.0: 2}
    many = _histogram([i / 100 for i in range(101)])
    assert len(many) <= MOST_BARS
    assert sum(many.values()) == 101
    assert min(many) == 0
    assert max(many) == 1


def test_the_stage_is_begun_and_trained_like_any_other(toy, tmp_path):
    run = begin(toy, {"out": tmp_path / "a"})
    assert isinstance(run, Reinforcement)
    assert (train(toy, out=tmp_path / "b", steps=1) / "done.json").is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answers": 1}, "relative to their group"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"questions": 0}, "questions=0"),
        ({"max_tokens": 160}, "lower max_tokens"),
        ({"tasks": [{"name": "sums"}]}, "no 'sums'"),
        ({"rewards": {"model": 1}}, "no reward model"),
        ({"objective": {"clip_low": 0}}, "clip_low=0"),
    ],
)
def test_what_cannot_work_is_refused(build, changes, said):
    with pytest.raises(ConfigError, match=said):
        list(build(changes).steps())


def test_exercises_are_right_and_never_those_held_out():
    import numpy as np

    from abyssal.evals.puzzles import is_held_out

    rng = np.random.default_rng(0)
    for puzzle in islice(worked._questions(worked.TASKS, 1, rng), 300):
        assert not is_held_out(puzzle.question)
        text = worked.exercise(puzzle, rng)
        assert text.startswith(prompt_of(puzzle.question))
        assert puzzle.answer in text.removeprefix(prompt_of(puzzle.question))
        lines = worked.steps(worked._expression(puzzle)).split(", ")
        for line in lines:
            left, right = line.split(" = ")
            assert eval(left) == int(right)
        assert lines[-1].endswith(f"= {puzzle.answer}")


@pytest.mark.slow
def test_killed_at_random_and_run_again_it_ends_where_it_would_have(toy, build, tmp_path):
    whole = build({"steps": 12}, out="whole")
    list(whole.steps())
    out, lot = tmp_path / "killed", random.Random(7)
    words = [sys.executable, "-m", "abyssal", "train", str(toy), f"out={out}", "steps=12"]
    path = str(Path(abyssal.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def steps() -> int:
        rows = out / "metrics.jsonl"
        return rows.read_bytes().count(b'"kind": "reinforce"') if rows.exists() else 0

    kills = 0
    for _ in range(3):
        goal = steps() + lot.randint(1, 4)
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while steps() < goal and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(lot.uniform(0, 0.02))
            process.kill()
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
    done = subprocess.run([*words, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] is True
    assert kills >= 2
    assert same(state(whole.folder), state(out))
    assert figures(whole.folder) == figures(out)
