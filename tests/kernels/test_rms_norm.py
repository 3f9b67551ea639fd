"""RMSNorm with a backward of its own is RMSNorm by definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.rms_norm import add_rms_norm, reference, rms_norm

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


# The native twin

SIZES = st.tuples(st.sampled_from([1, 2, 31, 33, 100]), st.sampled_from([1, 3, 16, 17, 64, 250]))


def assert_rounded(found, exact):
    """`found` is `exact` after one rounding to its precision, up to float32's own errors."""
    rounding = 2**-8 * 1.01 if found.dtype == torch.bfloat16 else 1e-5
    bound = rounding * exact.abs() + 1e-5 * exact.abs().max() + 3e-6
    assert ((found.float() - exact).abs() <= bound).all()


def away_from_zero(x):
    """A row of one number has no gradient but what rounding leaves, times 1 / number."""
    return x + 0.5 * x.sign()


def gradients(function, tensors, grads):
    leaves = [t.clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    return [*[o.detach() for o in outputs], *torch.autograd.grad(outputs, leaves, grads)]


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(SIZES, st.integers(0, 5))
def test_it_is_the_float32_reference_of_the_same_numbers_rounded_once(dtype, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, grad = away_from_zero(torch.randn(2, *size, generator=generator)).to(dtype)
    weight = torch.randn(size[1], generator=generator).to(dtype)
    low = gradients(lambda *a: [rms_norm(*a, 1e-6)], (x, weight), [grad])
    exact = gradients(lambda *a: [reference(*a, 1e-6)], (x.float(), weight.float()), [grad.float()])
    for found, expected in zip(low, exact, strict=True):
        assert_rounded(found, expected)


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(SIZES, st.integers(0, 5))
def test_adding_first_is_adding_and_then_norming(dtype, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y, grad, further = torch.randn(4, *size, generator=generator).to(dtype)
    y = away_from_zero(x + y) - x
    weight = torch.randn(size[1], generator=generator).to(dtype)
    low = gradients(lambda *a: add_rms_norm(*a, 1e-6), (x, y, weight), [further, grad])
    total = (x + y).float()  # what is normed is the sum as it is kept

    def exact(x, y, weight):
        return x + y, reference(total + (x + y) - (x + y).detach(), weight, 1e-6)

    wanted = gradients(exact, [t.float() for t in (x, y, weight)], [further.float(), grad.float()])
    assert torch.equal(low[0], x + y)
    for found, expected in zip(low[1:], wanted[1:], strict=True):
        assert_rounded(found, expected)


def test_rows_may_stand_apart():
    wide = torch.randn(9, 40)
    weight = torch.randn(24)
    assert torch.equal(rms_norm(wide[:, 7:31], weight, 1e-6),
                       rms_norm(wide[:, 7:31].clone(), weight, 1e-6))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_bad_number_spoils_its_row_and_no_other(dtype):
    x = torch.randn(5, 40).to(dtype)
    good = rms_norm(x, torch.ones(40, dtype=dtype), 1e-6)
    x[2, 37] = torch.nan
    y = rms_norm(x, torch.ones(40, dtype=dtype), 1e-6)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3, 4]], good[[0, 1, 3, 4]])


def test_the_number_of_threads_changes_no_bit(threads):
    x, weight = torch.randn(1000, 100).bfloat16(), torch.randn(100).bfloat16()
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(output_and_gradients(rms_norm, x, weight, 1e-6))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
