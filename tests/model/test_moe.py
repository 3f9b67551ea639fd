"""The gate and the experts, held to the paper's equations on sizes small enough to check by eye."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from abyssal.config import ModelConfig
from abyssal.kernels.experts import reference
from abyssal.model.moe import Gate, MoE

TINY = ModelConfig(
    hidden_size=8, n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3,
    moe_intermediate_size=5,
)  # fmt: skip


def random(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


@pytest.fixture
def gate():
    return random(Gate(TINY))


biases = st.lists(st.floats(-20, 20, width=32), min_size=8, max_size=8)


@given(bias=biases)
def test_a_token_stays_within_topk_group_groups_whatever_the_bias(bias):
    gate = random(Gate(TINY))
    gate.e_score_correction_bias.copy_(torch.tensor(bias))
    experts = gate(torch.randn(64, 8)).experts
    groups_visited = [len(set(row)) for row in (experts // 2).tolist()]  # two experts a group
    assert max(groups_visited) <= TINY.topk_group


@given(bias=biases)
def test_a_token_visits_different_experts_of_the_groups_with_the_best_pairs(bias):
    gate = random(Gate(TINY))
    gate.e_score_correction_bias.copy_(torch.tensor(bias))
    x = torch.randn(16, 8)
    experts, _, affinity = gate(x)
    scores = (affinity + gate.e_score_correction_bias).detach()
    for chosen, row in zip(experts.tolist(), scores.tolist(), strict=True):
        pairs = sorted(range(4), key=lambda g: row[2 * g] + row[2 * g + 1], reverse=True)
        open_to = [e for g in pairs[:2] for e in (2 * g, 2 * g + 1)]
        best = sorted((row[e] for e in open_to), reverse=True)[:3]
        assert len(set(chosen)) == 3
        assert sorted((row[e] for e in chosen), reverse=True) == best


def test_negative_biased_scores_never_let_a_masked_group_in(gate):
    gate.e_score_correction_bias.fill_(-20)
    gate.e_score_correction_bias[:4] = -10  # the first two groups win with scores below zero
    experts = gate(torch.randn(64, 8)).experts
    assert int(experts.max()) < 4


def test_the_bias_changes_who_is_chosen_but_not_how_much_they_count(gate):
    x = torch.randn(1, 8)
    gate.e_score_correction_bias[5] = 100.0
    experts, weights, _ = gate(x)
    affinity = (x @ gate.weight.T).sigmoid()[0, experts[0]]
    assert 5 in experts[0]
    torch.testing.assert_close(weights[0], affinity / affinity.sum() * TINY.routed_scaling_factor)


@given(bias=biases)
def test_the_weights_of_a_token_sum_to_routed_scaling_factor(bias):
    gate = random(Gate(TINY))
    gate.e_score_correction_bias.copy_(torch.tensor(bias))
    _, weights, _ = gate(torch.randn(32, 8))
    torch.testing.assert_close(weights.sum(-1), torch.full((32,), 2.5))
    assert (weights > 0).all()


def test_without_norm_topk_prob_the_weights_are_the_scaled_affinities(small_config):
    config = small_config(norm_topk_prob=False)
    gate = random(Gate(config))
    experts, weights, affinity = gate(torch.randn(9, config.hidden_size))
    torch.testing.assert_close(weights, affinity.gather(-1, experts) * 2.5)


def test_the_gate_learns_through_the_weights_and_the_bias_does_not_learn(gate):
    gate(torch.randn(5, 8)).weights[:, 0].sum().backward()
    assert gate.weight.grad.any()
    assert not gate.e_score_correction_bias.requires_grad


def test_the_gate_decides_in_float32_even_for_bfloat16_tokens(gate):
    x = torch.randn(40, 8).bfloat16()
    low = gate(x)
    high = gate(x.float())
    assert low.weights.dtype == torch.float32
    assert torch.equal(low.experts, high.experts)
    assert torch.equal(low.weights, high.weights)


@pytest.mark.parametrize("n_shared_experts", [0, 1, 2])
def test_the_output_is_the_shared_expert_and_the_weighted_sum_of_the_chosen(
    small_config, n_shared_experts
):
    config = small_config(n_shared_experts=n_shared_experts)
    moe = random(MoE(config))
    x = torch.randn(33, config.hidden_size)
    y, routing = moe(x)
    expected = reference(
        x, routing.experts, routing.weights, moe.experts.gate_up_proj, moe.experts.down_proj
    )
    if n_shared_experts:
        shared = moe.shared_experts
        gate, up = (x @ shared.gate_up_proj.weight.T).chunk(2, -1)
        expected = expected + (F.silu(gate) * up) @ shared.down_proj.weight.T
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-4)


def test_no_token_is_dropped_when_all_want_the_same_experts(small_config):
    config = small_config()
    moe = random(MoE(config))
    moe.gate.e_score_correction_bias[:3] = 100.0
    x = torch.randn(100, config.hidden_size)
    y, routing = moe(x)
    assert set(routing.experts.flatten().tolist()) == {0, 1, 2}
    alone = torch.cat([moe(row[None])[0] for row in x])
    torch.testing.assert_close(y, alone, atol=1e-3, rtol=1e-4)


def test_in_bfloat16_the_block_learns_what_it_learns_in_float32(small_config):
    config = small_config(hidden_size=64)
    high = random(MoE(config))
    with torch.no_grad():
        for parameter in high.parameters():  # of about the same sizes as in a model
            parameter.copy_((parameter / parameter.shape[-1] ** 0.5).bfloat16())
    low = MoE(config).bfloat16()
    low.load_state_dict(high.state_dict())
    low.gate.float()  # routers stay in float32
    x = torch.randn(150, 64).bfloat16()
    grad = torch.randn(150, 64).bfloat16()
    found, routing = low(x)
    expected, same = high(x.float())
    assert torch.equal(routing.experts, same.experts)
    found.backward(grad)
    expected.backward(grad.float())
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    for (name, ours), (_, defined) in zip(
        low.named_parameters(), high.named_parameters(), strict=True
    ):
        assert ours.grad.dtype == ours.dtype, name
        assert (ours.grad.float() - defined.grad).norm() < 0.02 * defined.grad.norm(), name
