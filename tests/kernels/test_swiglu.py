"""SwiGLU's middle with a backward of its own is silu(gate) * up by definition."""

import pytest
import torch

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
