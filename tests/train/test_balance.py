"""Balancing by bias, on counts small enough to check by hand and on a gate that starts crowded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.config import ModelConfig
from abyssal.model.moe import Gate, Routing
from abyssal.train.balance import expert_load, max_violation, update_biases

CONFIG = ModelConfig(
    hidden_size=8, n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2,
    moe_intermediate_size=4,
)  # fmt: skip


@pytest.fixture
def gate() -> Gate:
    gate = Gate(CONFIG)
    torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(1))
    return gate


def routing(experts, num_experts=4):
    experts = torch.tensor(experts)
    return Routing(experts, torch.ones(experts.shape), torch.rand(len(experts), num_experts))


def test_the_load_counts_every_choice_of_every_block():
    one, other = routing([[0, 1], [0, 2], [0, 1]]), routing([[3, 2], [3, 2], [3, 2]])
    assert expert_load([one, other]).tolist() == [[3, 2, 1, 0], [0, 0, 3, 3]]


@given(st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_loads_of_micro_batches_add_up_to_the_load_of_the_batch(sizes):
    experts = torch.randint(0, 6, (sum(sizes), 2))
    whole = Routing(experts, torch.ones(experts.shape), torch.rand(len(experts), 6))
    parts = [
        Routing(e, w, a) for e, w, a in zip(*(part.split(sizes) for part in whole), strict=True)
    ]
    assert torch.equal(expert_load([whole]), sum(expert_load([part]) for part in parts))


@pytest.mark.parametrize(
    ("load", "moves"),
    [([10, 2, 2, 2], [-1, 1, 1, 1]), ([4, 4, 4, 4], [0, 0, 0, 0]), ([4, 0, 2, 2], [-1, 1, 0, 0]),
     ([1, 1, 2, 1], [1, 1, -1, 1]), ([0, 0, 0, 0], [0, 0, 0, 0])],
)  # fmt: skip
def test_a_bias_falls_by_gamma_above_the_mean_load_and_rises_below(load, moves):
    config = ModelConfig(n_routed_experts=4, num_experts_per_tok=1, n_group=1, topk_group=1)
    gate = Gate(config)
    gate.e_score_correction_bias.copy_(torch.tensor([0.5, -0.25, 0.0, 0.125]))
    before = gate.e_score_correction_bias.clone()
    update_biases([gate], torch.tensor([load]), 0.25)
    assert torch.equal(gate.e_score_correction_bias, before + 0.25 * torch.tensor(moves))


def test_a_load_at_the_mean_is_recognized_whatever_the_rounding(gate):
    for tokens in (3, 7, 10**15 + 1):
        update_biases([gate], torch.full((1, 8), tokens), 1.0)
        assert not gate.e_score_correction_bias.any()


def test_each_gate_follows_its_own_load():
    gates = [Gate(CONFIG), Gate(CONFIG)]
    load = torch.tensor([[8, 0, 4, 4, 4, 4, 4, 4], [0, 8, 4, 4, 4, 4, 4, 4]])
    update_biases(gates, load, 1.0)
    found = [gate.e_score_correction_bias[:3].tolist() for gate in gates]
    assert found == [[-1, 1, 0], [1, -1, 0]]
    with pytest.raises(ValueError, match="zip"):
        update_biases(gates, load[:1], 1.0)


def test_without_speed_nothing_moves(gate):
    gate.e_score_correction_bias.uniform_()
    before = gate.e_score_correction_bias.clone()
    update_biases([gate], torch.tensor([[9, 1, 0, 0, 0, 0, 0, 0]]), 0.0)
    assert torch.equal(gate.e_score_correction_bias, before)


def test_the_bias_takes_no_gradient_and_small_steps_are_not_lost(gate):
    load = torch.tensor([[0, 8, 4, 4, 4, 4, 4, 4]])
    for _ in range(1000):
        update_biases([gate], load, 1e-3)
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert not gate.e_score_correction_bias.requires_grad
    torch.testing.assert_close(
        gate.e_score_correction_bias[:2], torch.tensor([1.0, -1.0]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("load", "violation"), [([2, 2, 2, 2], 0.0), ([8, 0, 0, 0], 3.0), ([3, 2, 2, 1], 0.5)]
)
def test_the_violation_is_the_largest_load_over_the_mean_less_one(load, violation):
    assert max_violation(torch.tensor([load, [1, 1, 1, 1]])).tolist() == [violation, 0.0]


def test_a_crowded_gate_becomes_even_within_a_few_dozen_steps(gate):
    with torch.no_grad():
        gate.weight *= 0.2
        gate.weight[0] += 1.0  # one expert that all tokens like ...
        gate.weight[3] -= 1.0  # ... and one that nobody does
    generator = torch.Generator().manual_seed(4)
    violations, loads = [], []
    for _ in range(80):
        x = torch.randn(512, 8, generator=generator) + 0.5
        load = expert_load([gate(x)])
        update_biases([gate], load, 0.02)
        violations.append(max_violation(load).item())
        loads.append(load[0])
    assert violations[0] > 1.5
    assert sum(violations[-10:]) / 10 < 0.35
    assert min(loads[-1]) > 0.5 * 512 * 2 / 8
    assert all(load.sum() == 512 * 2 for load in loads)  # and no token was dropped on the way
