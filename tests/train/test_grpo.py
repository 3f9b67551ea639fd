"""GRPO by hand, by its laws, and beside TRL's on the same tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.train import grpo
from abyssal.train.grpo import Objective, Taken

LENGTHS = torch.tensor([3, 1, 2])
OUTPUT = torch.arange(3).repeat_interleave(LENGTHS)


def taken(seed: int = 0, spread: float = 0.3) -> Taken:
    """Six tokens of three outputs, the policy already a little away from who drew."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(6, generator=generator) * 2
    drift = torch.randn(3, 6, generator=generator) * spread
    now = (old + drift[0]).requires_grad_()
    return Taken(now, old, old + drift[1], old + drift[2] * 0.1, OUTPUT)


def weights(mean: grpo.Mean = "output", longest: int = 4) -> torch.Tensor:
    return grpo.token_weights(LENGTHS, torch.ones(3, dtype=torch.bool), mean, longest)


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    population = grpo.advantages(rewards, "population")
    root3 = math.sqrt(3)
    expected = [[1, -1, -1, 1], [0, 0, 0, 0], [root3, -1 / root3, -1 / root3, -1 / root3]]
    torch.testing.assert_close(population, torch.tensor(expected))
    sample = grpo.advantages(rewards, "sample")
    torch.testing.assert_close(sample, population * math.sqrt(3 / 4))
    alone = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0], [2.25, -0.75, -0.75, -0.75]])
    torch.testing.assert_close(grpo.advantages(rewards, "none"), alone)
    assert grpo.has_variance(rewards).tolist() == [True, False, True]


def test_one_output_has_no_sample_deviation():
    with pytest.raises(ConfigError, match="draw more"):
        grpo.advantages(torch.ones(2, 1), "sample")


def test_a_reward_that_is_no_number_reaches_the_loss():
    rewards = torch.tensor([[1.0, math.nan], [0.0, 1.0], [math.inf, math.inf]])
    assert grpo.has_variance(rewards).all()
    wrong = grpo.advantages(rewards, "population")
    assert wrong[[0, 2]].isnan().all()
    assert wrong[1].isfinite().all()


def test_weights_by_hand():
    counted = torch.tensor([True, False, True])
    by_output = grpo.token_weights(LENGTHS, counted, "output", 4)
    torch.testing.assert_close(by_output, torch.tensor([1 / 6, 1 / 6, 1 / 6, 0, 1 / 4, 1 / 4]))
    by_token = grpo.token_weights(LENGTHS, counted, "token", 4)
    torch.testing.assert_close(by_token, torch.tensor([0.2, 0.2, 0.2, 0, 0.2, 0.2]))
    constant = grpo.token_weights(LENGTHS, counted, "constant", 4)
    torch.testing.assert_close(constant, torch.tensor([1, 1, 1, 0, 1, 1]) / 8)
    none = grpo.token_weights(LENGTHS, torch.zeros(3, dtype=torch.bool), "output", 4)
    assert not none.any()


def test_the_loss_by_hand():
    """Two outputs: of two tokens that became likelier (one beyond the clip), of one less likely."""
    log = math.log
    old = torch.tensor([log(0.5), log(0.5), log(0.5)])
    now = torch.tensor([log(0.55), log(0.75), log(0.3)], requires_grad=True)
    reference = torch.tensor([log(0.55), log(0.6), log(0.6)])
    one = Taken(now, old, reference, None, torch.tensor([0, 0, 1]))
    weight = grpo.token_weights(torch.tensor([2, 1]), torch.ones(2).bool(), "output", 2)
    terms = grpo.loss(one, torch.tensor([1.0, -1.0]), weight, Objective(kl=0.1))
    # ratios 1.1, 1.5, 0.6; gains 1.1, 1.2 (clipped), and min(-0.6, -0.8) = -0.8
    policy = -(1.1 + 1.2) / 4 + 0.8 / 2
    kls = [0.0, 0.8 - log(0.8) - 1, 2 - log(2) - 1]
    assert terms.policy.item() == pytest.approx(policy)
    assert terms.kl.item() == pytest.approx(sum(kls) / 3)
    distance = (kls[0] + kls[1]) / 4 + kls[2] / 2
    assert terms.loss.item() == pytest.approx(policy + 0.1 * distance)
    assert terms.clipped.item() == pytest.approx(2 / 3)
    terms.loss.backward()
    # d ratio / d logprob = ratio; the clipped two move by the distance alone: 1 - ref / now
    expected = [-1.1 / 4, 0.1 * (1 - 0.8) / 4, 0.1 * (1 - 2) / 2]
    torch.testing.assert_close(now.grad, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_printed_form_by_hand():
    """Eq. 26 and 27 with ratios of whole outputs: products of those of their tokens."""
    one = taken()
    gain = torch.tensor([1.0, -1.0, 0.5])
    sums = [
        torch.stack([x[i == OUTPUT].sum() for i in range(3)]).detach()
        for x in (one.logprob, one.old, one.reference)
    ]
    now, old, reference = sums
    ratio = (now - old).exp()
    policy = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
    distance = (reference - now).exp() - (reference - now) - 1
    objective = Objective(level="sequence", kl=0.3)
    terms = grpo.loss(one, gain, weights(), objective)
    torch.testing.assert_close(terms.loss.detach(), -(policy - 0.3 * distance).mean())
    root = grpo.loss(one, gain, weights(), Objective(level="root", kl=0))
    ratio = ((now - old) / LENGTHS).exp()
    policy = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
    torch.testing.assert_close(root.loss.detach(), -policy.mean())


@pytest.mark.parametrize("level", ["token", "sequence", "root"])
@pytest.mark.parametrize("mean", ["output", "token", "constant"])
def test_equal_rewards_give_no_gradient(level, mean):
    one = taken()
    gain = grpo.advantages(torch.full((1, 3), 0.7), "population")[0]
    grpo.loss(one, gain, weights(mean), Objective(level=level, kl=0)).loss.backward()
    assert not one.logprob.grad.any()


@pytest.mark.parametrize("level", ["token", "sequence", "root"])
@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_the_gradient_is_that_of_the_printed_loss(level, kl):
    """Every term flows: autograd in float64 against finite differences."""
    one = Taken(*(x if x.dtype == torch.int64 else x.double() for x in taken(3)))
    gain, weight = torch.tensor([1.0, -0.5, 0.3]).double(), weights().double()
    objective = Objective(level=level, kl=kl, clip_low=0.2, clip_high=0.28, truncate=2.0)

    def at(logprob):
        return grpo.loss(one._replace(logprob=logprob), gain, weight, objective).loss

    point = one.logprob.detach().requires_grad_()
    assert torch.autograd.gradcheck(at, point)


def test_the_first_step_is_the_policy_gradient():
    """Before anything moved, the ratio is 1 and its gradient is the advantage."""
    one = taken(spread=0.0)
    gain = torch.tensor([1.0, -1.0, 0.5])
    terms = grpo.loss(one, gain, weights(), Objective(kl=1.0))
    terms.loss.backward()
    torch.testing.assert_close(one.logprob.grad, -gain[OUTPUT] * weights())
    assert terms.clipped == 0
    assert terms.kl == 0


def test_truncated_importance_by_hand():
    old, drawn = torch.tensor([-1.0, -1.0]), torch.tensor([-1.0 - math.log(3), -1.0 + math.log(2)])
    torch.testing.assert_close(grpo.importance(old, drawn, 2.0), torch.tensor([2.0, 0.5]))


@given(
    st.lists(st.lists(st.floats(-5, 5, width=16), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(["population", "sample", "none"]),
)
def test_advantages_have_no_mean_and_do_not_see_a_shift(rows, scale):
    rewards = torch.tensor(rows, dtype=torch.float64)
    found = grpo.advantages(rewards, scale)
    assert found.sum(-1).abs().max() < 1e-9
    shifted = grpo.advantages(rewards + 8, scale)  # exact for floats of half precision
    torch.testing.assert_close(found, shifted, atol=1e-6, rtol=1e-6)
    if scale == "population":
        lengths = found.square().mean(-1)
        torch.testing.assert_close(lengths, grpo.has_variance(rewards).double())


@given(st.integers(0, 1000), st.floats(0.05, 10))
def test_the_distance_is_never_negative(seed, spread):
    one = taken(seed, spread)
    assert (grpo.k3(one.logprob, one.reference) >= -1e-6).all()


@given(st.integers(0, 1000))
def test_parts_of_a_step_add_up_to_it(seed):
    """Losses of micro-batches, weighted as parts of the whole, sum to the loss of the whole."""
    one, gain = taken(seed), torch.tensor([1.0, -1.0, 0.5])
    whole = grpo.loss(one, gain, weights("token"), Objective(kl=0.1)).loss
    parts = torch.zeros(())
    for some in (OUTPUT == 0, OUTPUT > 0):
        columns = [x[some] for x in one[:4]]
        output = one.output[some] - one.output[some].min()
        mine = gain[:1] if some[0] else gain[1:]
        part = grpo.loss(Taken(*columns, output), mine, weights("token")[some], Objective(kl=0.1))
        parts = parts + part.loss
    torch.testing.assert_close(parts, whole)


class Args:
    """What TRL's loss asks of its arguments."""

    delta = None
    use_bias_correction_kl = False


@pytest.mark.parametrize(
    ("loss_type", "mean", "level", "theirs"),
    [
        ("grpo", "output", "token", "token"),
        ("dapo", "token", "token", "token"),
        ("dr_grpo", "constant", "token", "token"),
        ("grpo", "output", "root", "sequence"),
        ("dapo", "token", "root", "sequence"),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 0.07])
def test_trl_has_the_same_loss_and_gradient(loss_type, mean, level, theirs, beta):
    """GRPOTrainer._compute_loss itself, its model's log-probabilities put in its place."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    one, gain = taken(5), torch.tensor([1.0, -1.0, 0.5])

    def padded(column):
        room = column.new_zeros(3, 3)
        room[torch.arange(3)[None] < LENGTHS[:, None]] = column
        return room

    now = one.logprob.detach().requires_grad_()
    mask = padded(torch.ones(6))
    inputs = {
        "prompt_ids": torch.zeros(3, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(3, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(3, 3, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": gain,
        "old_per_token_logps": padded(one.old),
        "ref_per_token_logps": padded(one.reference),
        "num_items_in_batch": mask.sum(),
    }

    class Stub:
        """The attributes that the loss reads, and nothing of a model."""

        importance_sampling_level, args, model = theirs, Args, torch.nn.Linear(1, 1)
        epsilon_low, epsilon_high, max_completion_length = 0.2, 0.3, 4
        top_entropy_quantile, off_policy_mask_threshold = 1.0, None
        aux_loss_enabled = use_vllm = _entropy_bonus_enabled = False
        current_gradient_accumulation_steps = 1

        class accelerator:
            num_processes, sync_gradients = 1, False
            gather = staticmethod(lambda x: x)
            reduce = staticmethod(lambda x, reduction: x)

        def __init__(self):
            self.loss_type, self.beta = loss_type, beta
            self.args.steps_per_generation = 1
            from collections import defaultdict

            self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}

        def _get_per_token_logps_and_entropies(self, *_, **__):
            return padded(now), torch.zeros(3, 3), None

    expected = trainer.GRPOTrainer._compute_loss(Stub(), None, inputs)
    objective = Objective(level=level, mean=mean, kl=beta, clip_low=0.2, clip_high=0.3)
    found = grpo.loss(one, gain, weights(mean), objective).loss
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(one.logprob.grad, now.grad)
