"""Sorting tokens by expert and back is the weighted sum of experts by definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.experts import gather, grouped_swiglu, reference, scatter, sort_by_expert


def sorted_experts(x, experts, weights, gate_up, down):
    order = sort_by_expert(experts, len(down))
    rows = grouped_swiglu(scatter(x, order, experts.shape[1]), gate_up, down, order.counts)
    return gather(rows, weights, order)


@st.composite
def cases(draw):
    """T tokens, each with K different experts of E, only some of which are ever chosen."""
    T, E = draw(st.integers(1, 70)), draw(st.integers(1, 9))
    popular = draw(st.integers(1, E))
    K = draw(st.integers(1, popular))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    chosen = torch.randperm(E, generator=generator)[:popular]
    rank = torch.rand(T, popular, generator=generator).argsort(-1)[:, :K]
    return chosen[rank], E, generator


def output_and_gradients(function, experts, num_experts, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    T, D, F = len(experts), 6, 5
    shapes = [(T, D), experts.shape, (num_experts, 2 * F, D), (num_experts, D, F)]
    x, weights, gate_up, down = (torch.randn(shape, generator=generator) for shape in shapes)
    leaves = [t.requires_grad_() for t in (x.to(dtype), weights, gate_up.to(dtype), down.to(dtype))]
    out = function(leaves[0], experts, *leaves[1:])
    out.backward(torch.randn(out.shape, generator=generator).to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@given(case=cases())
def test_it_is_the_reference_and_so_are_its_gradients(case):
    experts, E, generator = case
    seed = generator.initial_seed()
    ours = output_and_gradients(sorted_experts, experts, E, seed)
    defined = output_and_gradients(reference, experts, E, seed)
    for found, expected in zip(ours, defined, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_expert_nobody_chose_has_a_gradient_of_zero():
    experts = torch.tensor([[0, 3], [3, 0], [0, 3]])
    *_, gate_up, down = output_and_gradients(sorted_experts, experts, 5, 0)
    for grad in (gate_up, down):
        busy = grad.flatten(1).abs().amax(1) > 0
        assert busy.tolist() == [True, False, False, True, False]


def test_in_bfloat16_it_stays_within_bfloat16_of_the_definition_in_float32():
    experts = torch.rand(64, 6).argsort(-1)[:, :3]
    low = output_and_gradients(sorted_experts, experts, 6, 0, torch.bfloat16)
    high = output_and_gradients(reference, experts, 6, 0)
    for found, expected in zip(low, high, strict=True):
        assert (found.float() - expected).norm() < 0.02 * expected.norm()


@given(case=cases())
def test_every_choice_has_one_row_in_the_run_of_its_expert(case):
    experts, E, _ = case
    order = sort_by_expert(experts, E)
    owner = torch.arange(E).repeat_interleave(torch.tensor(order.counts))
    flat = experts.flatten()
    assert torch.equal(owner[order.row], flat)
    assert torch.equal(order.pair[order.row], torch.arange(len(flat)))
    assert (order.pair == len(flat)).sum() == len(owner) - len(flat)  # the rest is padding
