"""RMSNorm with a backward of its own is RMSNorm by definition."""

import pytest
import torch

from abyssal.kernels.rms_norm import reference, rms_norm

SHAPES = [(1, 8), (3, 7), (2, 5, 64), (40, 3), (300, 48)]


def output_and_gradients(norm, x, weight, eps):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = norm(x, weight, eps)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))
    return y.detach(), x.grad, weight.grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_it_is_the_reference_and_so_are_its_gradients(shape, eps, size):
    x, weight = torch.randn(shape) * size, torch.randn(shape[-1])
    ours = output_and_gradients(rms_norm, x, weight, eps)
    for found, expected in zip(ours, output_and_gradients(reference, x, weight, eps), strict=True):
        span = float(expected.abs().max())
        torch.testing.assert_close(found, expected, atol=1e-5 * span, rtol=1e-4)


def test_the_result_has_unit_mean_square_before_the_gain():
    y = rms_norm(torch.randn(20, 64) * 37, torch.ones(64), 1e-6)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(20))


def test_a_row_of_zeros_stays_zero_and_its_gradient_is_finite():
    y, grad_x, grad_weight = output_and_gradients(rms_norm, torch.zeros(2, 8), torch.ones(8), 1e-6)
    assert not y.any()
    assert grad_x.isfinite().all()
    assert not grad_weight.any()


def test_in_bfloat16_statistics_are_taken_in_float32():
    x, weight = torch.randn(64, 256), torch.rand(256) + 0.5
    low = output_and_gradients(rms_norm, x.bfloat16(), weight.bfloat16(), 1e-6)
    high = output_and_gradients(reference, x, weight, 1e-6)
    for found, expected in zip(low, high, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 0.01 * expected.norm()
