"""Feed-forwards in FP8: beside the definition of experts, in any company and in none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels import experts as plain
from abyssal.kernels import sorted_experts
from abyssal.kernels.fp8_experts import fp8_experts, fp8_mlp
from abyssal.kernels.fp8_tiles import Fp8
from abyssal.kernels.swiglu import reference as swiglu


def draw(T, K, E, D, F, seed=0, used=None):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    choices = torch.rand(T, used or E, generator=generator).argsort(-1)[:, :K]
    weights = torch.rand(T, K, generator=generator) + 0.1
    return random(T, D), choices, weights, random(E, 2 * F, D) / D**0.5, random(E, D, F) / F**0.5


def results(function, x, experts, weights, gate_up, down):
    leaves = [t.clone().requires_grad_() for t in (x, weights, gate_up, down)]
    y = function(leaves[0], experts, *leaves[1:])
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def ours(*args):
    return fp8_experts(*args, Fp8())


@given(
    st.sampled_from([1, 40, 150]), st.sampled_from([1, 2]), st.sampled_from([2, 5]),
    st.sampled_from([17, 160]), st.sampled_from([9, 96, 130]),
)  # fmt: skip
def test_output_and_gradients_are_the_definitions_within_the_format(T, K, E, D, F):
    args = draw(T, K, E, D, F)
    for found, expected in zip(results(ours, *args), results(plain.reference, *args), strict=True):
        assert found.shape == expected.shape
        if expected.numel() > 1000:  # of few numbers one may be a difference of large ones
            assert (found - expected).norm() <= 0.12 * expected.norm()


def test_experts_that_nobody_chose_get_no_gradient():
    args = draw(30, 2, 6, 32, 16, used=3)
    *_, gate_up, down = results(ours, *args)
    assert not gate_up[3:].any()
    assert not down[3:].any()
    assert gate_up[:3].flatten(1).any(1).all()


def test_a_token_does_not_depend_on_its_company():
    x, experts, weights, gate_up, down = draw(70, 2, 4, 64, 48)
    whole = ours(x, experts, weights, gate_up, down)
    few = slice(11, 19)
    alone = ours(x[few], experts[few], weights[few], gate_up, down)
    assert torch.equal(alone, whole[few])


def test_one_expert_for_all_is_a_feed_forward():
    x, experts, weights, gate_up, down = draw(64, 1, 1, 96, 40)
    leaves = [t.clone().requires_grad_() for t in (x, gate_up[0], down[0])]
    y = fp8_mlp(*leaves, Fp8())
    y.backward(torch.ones_like(y))
    exact = [t.clone().requires_grad_() for t in (x, gate_up[0], down[0])]
    (swiglu(exact[0] @ exact[1].T) @ exact[2].T).backward(torch.ones_like(y))
    for found, expected in zip(leaves, exact, strict=True):
        assert (found.grad - expected.grad).norm() < 0.09 * expected.grad.norm()
    routed = ours(x, experts, torch.ones_like(weights), gate_up, down)  # other scales, so only near
    assert (routed - y).norm() < 0.09 * y.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_keeps_a_byte_for_each_number_of_x_and_h_and_no_other_activations(dtype):
    T, K, E, D, F = 128, 2, 4, 128, 128
    x, experts, weights, gate_up, down = draw(T, K, E, D, F)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours(x.to(dtype).requires_grad_(), experts, weights, gate_up, down)
    wide = [t for t in saved if t.is_floating_point() and t.element_size() > 1]
    assert all(t.numel() < T * D / 8 for t in wide)  # scales, and the weights of choices
    eight = [t for t in saved if t.dtype == torch.float8_e4m3fn]
    rows = sorted_experts.sort_by_expert(experts, E).pair.numel()
    assert [t.numel() for t in eight] == [T * D, rows * 2 * F, E * 2 * F * D, E * D * F]


@pytest.mark.parametrize(
    "how", [Fp8(gradients="e5m2"), Fp8(scales="tensor"), Fp8(gradient_blocks="block")]
)
def test_the_arms_compute_nearly_the_same_on_random_numbers(how):
    args = draw(100, 2, 3, 96, 40)
    found = results(lambda *a: fp8_experts(*a, how), *args)
    for one, expected in zip(found, results(plain.reference, *args), strict=True):
        assert (one - expected).norm() <= 0.2 * expected.norm()
