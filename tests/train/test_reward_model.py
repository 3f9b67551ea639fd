"""Reward models: the losses by hand, the last token judged, folders that come back."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from abyssal.batch import Batch
from abyssal.errors import CheckpointError, ConfigError, RequestError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.chat import Message
from abyssal.train import reward_model
from abyssal.train.metrics import read_metrics
from abyssal.train.reward_model import Judge, RewardModel, pairwise, pointwise

LN2 = math.log(2)


def talk(asked, said):
    return [Message("user", asked), Message("assistant", said)]


def test_losses_worked_out_by_hand():
    pairs = torch.tensor([[2.0, 2.0], [1.0, -1.0], [-1.0, 1.0]])
    expected = [LN2, math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    torch.testing.assert_close(pairwise(pairs), torch.tensor(expected))
    found = pointwise(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([True, True, False]))
    torch.testing.assert_close(found, torch.tensor(expected))


@given(st.integers(0, 9))
def test_gradients_push_apart_and_pointwise_is_binary_cross_entropy(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(5, 2, generator=generator).requires_grad_()
    (grad,) = torch.autograd.grad(pairwise(rewards).sum(), rewards)
    wrong = torch.sigmoid(rewards[:, 1] - rewards[:, 0]).detach()
    torch.testing.assert_close(grad, torch.stack([-wrong, wrong], -1))
    good = torch.rand(10, generator=generator) < 0.5
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        rewards.flatten(), good.float(), reduction="none"
    )
    torch.testing.assert_close(pointwise(rewards.flatten(), good), wanted)


@pytest.fixture
def model(base):
    generator = torch.Generator().manual_seed(1)
    policy = DeepSeekV3.load(base)
    head = torch.randn(1, policy.config.hidden_size, generator=generator)
    return RewardModel.of(policy, head)


def test_a_reward_is_the_head_at_the_last_token_of_each_sequence(model):
    batch = Batch.from_sequences([[5, 6, 7], [8, 9]])
    with torch.no_grad():
        hidden = model(batch).hidden
        expected = hidden[[2, 4]] @ model.score.weight[0]
        torch.testing.assert_close(model.rewards(hidden, batch), expected)
        alone = Batch.from_sequences([[8, 9]])
        torch.testing.assert_close(model.rewards(model(alone).hidden, alone), expected[1:])


def test_a_folder_gives_the_same_model_back_and_is_a_language_model_too(model, base, tmp_path):
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert load_file(tmp_path / "reward" / reward_model.HEAD).keys() == {"score.weight"}
    batch = Batch.from_sequences([[5, 6, 7]])
    assert torch.equal(
        DeepSeekV3.load(tmp_path / "reward").logits(batch), DeepSeekV3.load(base).logits(batch)
    )
    with pytest.raises(CheckpointError, match="no reward head"):
        RewardModel.load(base)


def test_a_run_learns_to_judge_answers_it_never_saw(tune):
    training = tune("reward", {"epochs": 8.0, "optim": {"lr": 0.02}})
    list(training.steps())
    metrics = read_metrics(training.folder)
    assert metrics.steps[0].loss == pytest.approx(LN2, rel=1e-5)  # a head of zeros: all are equal
    assert metrics.steps[-1].figures["accuracy"] == 1.0
    judge = Judge(training.folder)
    right, wrong = judge(
        [talk("a fish", "the fish swam in the dark sea"),
         talk("a fish", "the crab swam in the dark sea")]
    )  # fmt: skip
    assert right > wrong
    assert judge([talk("a fish", "the crab swam in the dark sea")])[0] == pytest.approx(
        wrong, abs=1e-4
    )
    with pytest.raises(RequestError, match="tokens to judge, expected at most 64"):
        judge([talk("a fish " * 80, "no")])


def test_single_answers_are_judged_on_their_own(tune, tmp_path):
    rows = [
        {"prompt": prompt, "response": f"the {who} swam", "label": who == "fish"}
        for who in ("fish", "crab")
        for prompt in ("a fish", "a crab", "the sea")
    ]
    path = tmp_path / "safe.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    changes = {"loss": "pointwise", "epochs": 40.0, "optim": {"lr": 0.01},
               "data": {"sources": [{"name": "safe", "rows": str(path)}]}}  # fmt: skip
    training = tune("reward", changes)
    list(training.steps())
    last = read_metrics(training.folder).steps[-1]
    assert last.figures["accuracy"] == 1.0
    assert last.figures["reward/good"] > 0 > last.figures["reward/bad"]


def test_what_judging_does_not_need_stays_as_it_was(tune, base, look):
    training = tune("reward", {"epochs": 1.0})
    list(training.steps())
    before, after = look(base).weights, look(training.folder).weights
    same = {name for name in before if before[name] == after[name]}
    assert "lm_head.weight" in same
    assert "layers.0.self_attn.o_proj.weight" not in same


def test_a_judge_writes_no_samples(tune):
    with pytest.raises(ConfigError, match="a reward model judges"):
        tune("reward", {"samples": ["fish"]})
