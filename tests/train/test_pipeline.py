"""The R1 pipeline as recipes: each loads, and a toy of each takes its steps in order."""

import json
from pathlib import Path

import pytest
import torch

from abyssal import recipe as recipes
from abyssal.config import ModelConfig
from abyssal.data.shards import Shards
from abyssal.engine.request import SamplingParams
from abyssal.errors import CheckpointError, ConfigError, DataError
from abyssal.evals.puzzles import prompt_of
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer import control
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import worked
from abyssal.train.exercises import Exercises
from abyssal.train.forms import prompt_tokens
from abyssal.train.general import general_questions, is_graded
from abyssal.train.metrics import read_metrics
from abyssal.train.reinforce import GRPO, General
from abyssal.train.reinforcement import Reinforcement
from abyssal.train.rollouts import Rollouts
from abyssal.train.sft import SFT
from abyssal.train.sieve import Sieve
from abyssal.train.teachers import Manner, Written
from abyssal.train.traces import Sampling, Writing, tasks_of
from abyssal.train.training import begin

NAMES = ("r1/cold-start", "r1/reason", "r1/sft", "r1/reward", "r1/align")
FULL = ("r1/full-cold-start", "r1/full-reason", "r1/full-sft", "r1/full-align")


class Pupil:
    """A teacher who is always right, of whom there is no model."""

    name = "pupil"

    def answer(self, asked, manner):
        for index, text in asked:
            sums = text.split("Calculate")[-1].split(":")[-1].strip(" .=")
            said = f"<think> {sums} </think> <answer> {eval(sums)} </answer>"
            yield [(index, [Written(None, said, "stop")])]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A base model, a tokenizer, traces and general questions, as r1's recipes expect them."""
    root = tmp_path_factory.mktemp("r1")
    prompt = prompt_of("State the final answer to the following arithmetic problem: 4 - 1 =")
    tokenizer = Tokenizer.train([prompt] * 3, 360)
    tokenizer.save(root / "tokenizer")
    config = ModelConfig(
        vocab_size=360, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).save(root / "base")
    tokenizer.save(root / "base")
    worked.write_general(root / "data", tokenizer, 1)
    for name in ("cold", "rejection"):
        sampling = Sampling(Pupil(), tasks_of("r1/zero"), Manner(answers=1), root / name, 20)
        list(sampling.run(Sieve()))
        sampling.publish(Sieve(), Writing(tokenizer=root / "tokenizer"))
    return root


def small(root: Path, name: str) -> dict[str, object]:
    """A recipe's own values with its folders under root, and a size for toys."""
    values = json.loads(json.dumps(recipes.load(name)).replace("out/r1/", f"{root}/"))
    values |= {"precision": "float32", "minutes": "none", "eval_every": 2, "save_every": 2}
    if values["stage"] == "grpo":
        sizes = {"steps": 2, "questions": 3, "answers": 2, "max_tokens": 8, "held_out": 2}
        return values | sizes | {"optim": values["optim"] | {"warmup_steps": 0}}
    values["data"] = values["data"] | {"held_out": []}
    seq_len = 128 if values["stage"] == "sft" else 160
    values["batch"] = {
        "seq_len": seq_len, "sequences": [{"until": 1, "to": 2}], "micro_sequences": 2,
    }  # fmt: skip
    return values | {"tokens": 2 * 2 * seq_len}


def test_every_recipe_takes_two_steps_from_the_one_before(root):
    for name in NAMES:
        run = begin(name, small(root, name))
        steps = list(run.steps())
        assert run.is_done
        assert len(steps) == 2
        assert run.folder == root / name.removeprefix("r1/")
        if isinstance(run, Reinforcement):
            assert run.run.form == "chat"
            asked = {one.name for one in read_metrics(run.folder).examinations}
            assert asked == {"chain_sum", "basic_arithmetic"}


@pytest.mark.parametrize("name", FULL)
def test_recipes_of_the_published_size_have_the_published_numbers(name):
    values = {key: value for key, value in recipes.load(name).items() if key != "stage"}
    if name in ("r1/full-reason", "r1/full-align"):
        run = recipes.fill(GRPO, values, name)
        assert (run.questions * run.answers, run.mini_batches) == (8192, 16)
        assert (run.optim.lr, run.objective.kl) == (3e-6, 0.001)
        assert run.objective.clip_low == run.objective.clip_high == 10
        assert (run.form, run.rewards.language) == ("chat", 1)
        assert run.temperature == (0.7 if name == "r1/full-align" else 1)
        if name == "r1/full-align":  # 16 of the paper's steps to one draw
            assert 16 * run.steps == pytest.approx(1700, abs=16)
            last = sum(draw >= run.general_after * run.steps for draw in range(run.steps))
            assert 16 * last == pytest.approx(400, abs=16)
    else:
        tuning = recipes.fill(SFT, values, name)
        assert tuning.optim.lr == 5e-5
        assert tuning.optim.schedule[-1].to == pytest.approx(0.1)
        assert tuning.batch.seq_len == 32768
        assert tuning.batch.sequences[0].to == 128


def test_the_small_recipes_write_and_read_one_layout(root):
    shards, tokenizer = Shards(root / "data" / "general"), Tokenizer.load(root / "tokenizer")
    tokens = shards.tokens(0).tolist()
    after = tokens[tokens.index(tokenizer.control(control.ASSISTANT)) + 1]
    assert after == tokenizer.control(control.END_THINK)  # it answers without a thought
    assert worked.LAYOUT == recipes.fill(
        GRPO, {k: v for k, v in recipes.load("r1/reason").items() if k != "stage"}, "reason"
    ).layout == Writing(tokenizer=root).layout  # fmt: skip


@pytest.fixture
def aligned(root, tmp_path):
    """aligned(changes): exercises of r1/align from the base, its judge a function of the answer."""

    def made(changes: dict[str, object]) -> Reinforcement:
        values = small(root, "r1/align") | {"init": str(root / "base"), "out": str(tmp_path / "o")}
        values |= {"judge": "none", "questions": 12, "steps": 4, **changes}
        return Reinforcement("r1/align", values, lambda question, text: 7.0)

    return made


def test_general_questions_come_last_and_earn_by_model_and_form_alone(aligned):
    run = aligned({"general_after": 0.5})
    tokenizer, model = run._start()
    exercises = Exercises(run.run, Rollouts(model, tokenizer, running=8), run.judge)
    kinds = []
    for _ in range(4):
        groups = exercises.draw().groups
        kinds.append({is_graded(group.puzzle) for group in groups})
        for group in groups:
            expected = 0.0 if is_graded(group.puzzle) else 7.0
            assert {one.model for one in group.parts} == {expected}
            if not is_graded(group.puzzle):
                assert {one.accuracy for one in group.parts} == {0.0}
                for one in group.parts:
                    assert one.total == pytest.approx(one.format + one.language + 7 / 4)
    assert kinds == [{True}, {True}, {True, False}, {True, False}]


def test_without_general_questions_the_model_judges_all(aligned):
    run = aligned({"general": []})
    tokenizer, model = run._start()
    exercises = Exercises(run.run, Rollouts(model, tokenizer, running=8), run.judge)
    parts = [one for group in exercises.draw().groups for one in group.parts]
    assert {one.model for one in parts} == {7.0}


def test_a_chat_is_put_in_its_layout_and_read_behind_its_thought(root):
    tokenizer, model = Tokenizer.load(root / "base"), DeepSeekV3.load(root / "base")
    rollouts = Rollouts(model, tokenizer, running=8)
    prompts = rollouts.llm.prompts
    for layout in ("r1", "v3.1"):
        asked = prompt_tokens(prompts, "1 + 1 =", "chat", layout)
        think = tokenizer.control(control.THINK)
        assert think in asked[-2:]
        (answers,) = rollouts.draw([asked], SamplingParams(max_tokens=12, n=6), (1,))
        for answer in answers:
            closed = answer.tokens.count(tokenizer.control(control.END_THINK)) == 1
            assert (answer.thought is not None) == closed
    closes = tokenizer.control(control.END_THINK)
    asked = prompt_tokens(prompts, "Who are you?", "chat", "v3.1", thinking=False)
    assert asked[-1] == closes
    (answers,) = rollouts.draw([asked], SamplingParams(max_tokens=12, n=6), (1,))
    for answer in answers:
        assert (answer.thought == "") == (closes not in answer.tokens)
    always = [prompt_tokens(prompts, "Hi", "chat", "r1", thinking=on) for on in (True, False)]
    assert always[0] == always[1]
    text = prompt_tokens(prompts, "1 + 1 =", "zero", "r1")
    assert text == tokenizer.encode(prompt_of("1 + 1 ="), bos=True)


@pytest.mark.parametrize(
    ("changes", "problem", "said"),
    [
        ({"general_after": 1.0}, ConfigError, "general_after=1.0"),
        ({"rewards": {"model": 0.0}}, ConfigError, "general questions have no grade"),
        ({"rewards": {"model": 0.0}, "general": []}, ConfigError, "judge=.* but rewards.model=0"),
        ({"judge": "none"}, ConfigError, "no reward model is given"),
        ({"judge": "nowhere"}, CheckpointError, "no reward head"),
        ({"layout": "v3"}, ConfigError, "layout is 'v3'"),
    ],
)
def test_what_cannot_work_is_refused(root, tmp_path, changes, problem, said):
    values = small(root, "r1/align") | {"init": str(root / "base"), "out": str(tmp_path / "out")}
    with pytest.raises(problem, match=said):
        list(Reinforcement("r1/align", values | changes).steps())


def test_rows_that_ask_nothing_are_refused(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "assistant", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match="no row asks anything"):
        general_questions(General(name="none", rows=rows))
