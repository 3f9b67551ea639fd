"""Routing in one pass is routing by definition, gradients included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.registry import native, reference_only
from abyssal.kernels.router import Rule, reference, route

needs_native = pytest.mark.skipif(
    native("route") is None, reason="no native kernels on this machine"
)


@st.composite
def cases(draw):
    """Logits (T, E), a bias (E) and a rule that fits them."""
    groups, size = draw(st.integers(1, 9)), draw(st.integers(2, 40))
    kept = draw(st.integers(1, groups))
    rule = Rule(
        num_experts_per_tok=draw(st.integers(1, min(12, kept * size))),
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    logits = torch.randn(draw(st.integers(1, 20)), groups * size, generator=generator) * 2
    return logits, torch.randn(groups * size, generator=generator) * draw(st.floats(0, 2)), rule


def outputs_and_gradient(function, logits, bias, rule, through):
    leaf = logits.clone().requires_grad_()
    experts, weights, affinity = function(leaf, bias, rule)
    seed = torch.Generator().manual_seed(1)
    tensors = {"weights": [weights], "affinity": [affinity], "both": [weights, affinity]}[through]
    total = sum((t * torch.randn(t.shape, generator=seed)).sum() for t in tensors)
    total.backward()
    return experts, weights.detach(), affinity.detach(), leaf.grad


@needs_native
@given(case=cases(), through=st.sampled_from(["weights", "affinity", "both"]))
def test_it_is_the_definition_and_so_is_its_gradient(case, through):
    ours = outputs_and_gradient(route, *case, through)
    defined = outputs_and_gradient(reference, *case, through)
    assert torch.equal(ours[0], defined[0])
    for found, expected in zip(ours[1:], defined[1:], strict=True):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@needs_native
@given(case=cases(), level=st.floats(-3, 3, width=32))
def test_equal_scores_go_to_the_lowest_index(case, level):
    logits, bias, rule = case
    experts, _, _ = route(torch.full_like(logits, level), torch.zeros_like(bias), rule)
    assert torch.equal(experts, torch.arange(experts.shape[1]).expand_as(experts))


@needs_native
@pytest.mark.parametrize("E", [1, 2, 7, 16, 17, 64])
def test_all_experts_can_be_chosen_and_stand_in_order(E):
    logits = torch.randn(30, E)
    experts, weights, affinity = route(logits, torch.zeros(E), Rule(E))
    assert torch.equal(experts.sort(-1).values, torch.arange(E).expand(30, E))
    assert (affinity.gather(-1, experts).diff(dim=-1) <= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(30))


@needs_native
@given(case=cases(), value=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_what_is_no_number_chooses_different_experts_of_those_that_exist(case, value):
    logits, bias, rule = case
    logits[0, ::3] = value
    logits[-1] = value
    experts, weights, affinity = route(logits, bias, rule)
    assert all(len(set(row)) == len(row) for row in experts.tolist())
    assert int(experts.min()) >= 0
    assert int(experts.max()) < logits.shape[1]
    assert torch.equal(affinity.isnan(), logits.isnan())
    assert torch.equal(weights[-1].isnan(), logits[-1, : weights.shape[1]].isnan())


@needs_native
def test_a_nan_is_the_greatest_of_all():
    logits = torch.randn(4, 40)
    logits[:, 33] = torch.nan
    for function in (route, reference):
        assert (function(logits, torch.zeros(40), Rule(5))[0][:, 0] == 33).all()


@needs_native
def test_the_number_of_threads_changes_no_bit():
    logits, bias, rule = torch.randn(600, 256), torch.randn(256), Rule(8, 8, 4)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(outputs_and_gradient(route, logits, bias, rule, "both"))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_other_types_and_no_tokens_go_by_the_definition():
    bias, rule = torch.randn(16), Rule(3, 4, 2)
    experts, weights, _ = route(torch.randn(5, 16).double(), bias.double(), rule)
    assert weights.dtype == torch.float64
    assert experts.shape == (5, 3)
    assert route(torch.randn(0, 16), bias, rule)[0].shape == (0, 3)
    logits = torch.randn(9, 16)
    with reference_only():
        found = route(logits, bias, rule)
    for one, two in zip(found, reference(logits, bias, rule), strict=True):
        assert torch.equal(one, two)
