"""A linear layer in FP8: beside float32, what it keeps, and its arms."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.fp8_linear import fp8_linear
from abyssal.kernels.fp8_tiles import Fp8

SIDES = st.sampled_from([1, 31, 96, 160, 257])


def results(function, x, weight, grad):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight)
    y.backward(grad.to(y.dtype))
    return y.detach(), x.grad, weight.grad


def kept_bytes(function, *args):
    """What a pass saves for its backward."""
    saved = []

    def keep(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*args)
    return saved


@given(SIDES, SIDES, SIDES, st.booleans(), st.sampled_from([torch.bfloat16, torch.float32]))
def test_output_and_gradients_are_float32s_within_the_format(
    tokens, inputs, outputs, after_attention, dtype
):
    generator = torch.Generator().manual_seed(tokens * inputs + outputs)
    x, weight, grad = (
        torch.randn(shape, generator=generator)
        for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    )
    x = x.to(dtype)
    ours = results(
        lambda x, w: fp8_linear(x, w, Fp8(), after_attention=after_attention), x, weight, grad
    )
    exact = results(F.linear, x.float(), weight, grad)
    sizes = results(F.linear, x.float().abs(), weight.abs(), grad.abs())
    # Three roundings at most (x is regrouped, and kept), each half a step: 2^-4 of a number or, of
    # small ones, 2^-10 of 2^-8 to 1 of the largest.
    for found, expected, size in zip(ours, exact, sizes, strict=True):
        assert ((found.float() - expected).abs() <= 0.22 * size + 0.02).all()
    for found, expected in zip(ours, exact, strict=True):
        if expected.numel() > 2000:
            assert (found.float() - expected).norm() / expected.norm() < 0.06
    assert [part.dtype for part in ours] == [dtype, dtype, torch.float32]


def test_it_keeps_a_byte_a_number_or_a_byte_and_a_half_after_attention():
    x, weight = torch.randn(256, 256).bfloat16(), torch.randn(128, 256).requires_grad_()
    for after_attention, size in ((False, 1), (True, 1.5)):
        kept = kept_bytes(
            lambda x, w, a: fp8_linear(x, w, Fp8(), after_attention=a), x, weight, after_attention
        )
        of_x, of_weight = kept[:-2], kept[-2:]
        numbers = sum(t.numel() * t.element_size() for t in of_x)
        assert numbers == 256 * 256 * size + 256 * 2 * 4
        assert of_weight[0].dtype == torch.float8_e4m3fn
        assert of_weight[1].shape == (1, 2)


def test_what_is_kept_in_e4m3_is_what_was_multiplied():
    x, weight = torch.randn(64, 96), torch.randn(32, 96).requires_grad_()
    kept = kept_bytes(lambda x, w: fp8_linear(x, w, Fp8()), x, weight)
    assert kept[0].dtype == torch.float8_e4m3fn
    assert kept[0].shape == x.shape


@pytest.mark.parametrize(
    "arm",
    [{"gradients": "e5m2"}, {"scales": "tensor"}, {"gradient_blocks": "block"}],
    ids=lambda arm: "-".join(arm),
)
def test_the_arms_are_worse_where_numbers_differ_in_size(arm):
    """One token with a gradient far beyond its neighbors', and one such feature of x."""
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(shape, generator=generator) for shape in ((256, 384), (256, 384), (256, 256))
    )
    x[:, 7] *= 1e5
    grad[5] *= 1e5
    rest = [row for row in range(100) if row != 5]
    exact = results(F.linear, x, weight, grad)[1][rest]

    def error(how):
        found = results(lambda x, w: fp8_linear(x, w, how), x, weight, grad)[1][rest]
        return float((found - exact).norm() / exact.norm())

    assert error(Fp8()) < 0.06
    assert error(Fp8(**arm)) > 1.3 * error(Fp8())


def test_nan_comes_out():
    x, weight = torch.randn(4, 128), torch.randn(8, 128)
    x[2, 3] = torch.nan
    y = fp8_linear(x, weight, Fp8())
    assert y[2].isnan().all()
    assert y[[0, 1, 3]].isfinite().all()
