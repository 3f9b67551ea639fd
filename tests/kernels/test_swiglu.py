"""SwiGLU's middle with a backward of its own is silu(gate) * up by definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.swiglu import reference, swiglu


def output_and_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))
    return y.detach(), x.grad


@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (3, 4, 66), (0, 8)])
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_it_is_the_reference_and_so_is_its_gradient(shape, size):
    x = torch.randn(shape) * size
    ours = output_and_gradient(swiglu, x)
    for found, expected in zip(ours, output_and_gradient(reference, x), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_gate_comes_first():
    gate_up = torch.tensor([[0.0, 2.0, 10.0, 100.0]])  # gates 0 and 2, ups 10 and 100
    expected = torch.tensor([[0.0, 2 / (1 + torch.e**-2) * 100]])
    torch.testing.assert_close(swiglu(gate_up), expected)


def test_in_bfloat16_it_stays_within_bfloat16_of_the_definition():
    x = torch.randn(50, 64)
    low = output_and_gradient(swiglu, x.bfloat16())
    for found, expected in zip(low, output_and_gradient(reference, x), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 0.01 * expected.norm()


# The native twin


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(st.sampled_from([1, 2, 33]), st.sampled_from([1, 3, 16, 17, 250]), st.integers(0, 5))
def test_it_is_the_float32_reference_of_the_same_numbers_rounded_once(dtype, rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, 2 * size, generator=generator) * 4).to(dtype)
    grad = torch.randn(rows, size, generator=generator).to(dtype)
    results = []
    for function, of in ((swiglu, x), (reference, x.double())):
        leaf = of.clone().requires_grad_()
        y = function(leaf)
        y.backward(grad.to(y.dtype))
        results.append((y.detach(), leaf.grad))
    rounding = 2**-8 * 1.01 if dtype == torch.bfloat16 else 1e-5
    for found, exact in zip(*results, strict=True):
        assert ((found - exact).abs() <= rounding * exact.abs() + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gates_far_out_are_closed_or_open(dtype):
    gates = torch.tensor([-1e30, -200.0, -90.0, 90.0, 200.0, torch.inf, torch.nan])
    x = torch.cat([gates, torch.ones(7)])[None].to(dtype)
    y, grad = output_and_gradient(swiglu, x)
    assert (y[0, :3].abs() < 1e-30).all()
    assert torch.equal(y[0, 3:6], x[0, 3:6])
    assert y[0, 6].isnan()
    assert grad[0, :5].isfinite().all()
    assert grad[0, 6].isnan()


def test_the_number_of_threads_changes_no_bit(threads):
    x = torch.randn(700, 128).bfloat16()
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(torch.cat(output_and_gradient(swiglu, x), 1))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
