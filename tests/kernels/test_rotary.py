"""Rotation with a backward of its own turns neighboring pairs, and only turns them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.rotary import reference, rotate


def angles(T, pairs):
    angle = torch.randn(T, pairs) * 10
    return angle.cos(), angle.sin()


def test_it_is_the_reference_and_so_is_its_gradient():
    x, grad, turn = torch.randn(9, 3, 8), torch.randn(9, 3, 8), angles(9, 4)
    results = []
    for function in (rotate, reference):
        leaf = x.clone().requires_grad_()
        y = function(leaf, *turn)
        y.backward(grad)
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(*results)


def test_pairs_are_neighbors_and_turn_as_complex_numbers_do():
    x = torch.randn(5, 2, 6)
    cos, sin = angles(5, 3)
    turned = torch.view_as_complex(x.view(5, 2, 3, 2)) * torch.complex(cos, sin)[:, None]
    expected = torch.cat([turned.real, turned.imag], -1)  # all first elements, then all second
    torch.testing.assert_close(rotate(x, cos, sin), expected)


def test_lengths_stay_and_products_depend_on_the_distance_only():
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    frequency = torch.tensor([1.0, 0.3, 0.1, 0.01])

    def at(x, position):
        angle = position * frequency[None]
        return rotate(x, angle.cos(), angle.sin()).flatten()

    torch.testing.assert_close(at(q, 17).norm(), q.norm())
    torch.testing.assert_close(at(q, 9) @ at(k, 4), at(q, 105) @ at(k, 100), atol=1e-4, rtol=1e-4)


def test_in_bfloat16_it_stays_bfloat16():
    x = torch.randn(30, 2, 8)
    cos, sin = angles(30, 4)
    low = rotate(x.bfloat16(), cos, sin)
    assert low.dtype == torch.bfloat16
    assert (low.float() - reference(x, cos, sin)).norm() < 0.01 * x.norm()


# The native twin


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(st.sampled_from([1, 2, 19]), st.sampled_from([1, 3]), st.sampled_from([1, 3, 16, 33]),
       st.booleans())  # fmt: skip
def test_it_is_the_float32_reference_of_the_same_numbers_rounded_once(dtype, T, H, pairs, apart):
    generator = torch.Generator().manual_seed(T)
    x = torch.randn(T, H, 2 * pairs + 5, generator=generator).to(dtype)
    x = x[..., 5:] if apart else x[..., 5:].contiguous()
    grad = torch.randn(T, H, 2 * pairs, generator=generator).to(dtype)
    angle = torch.randn(T, pairs, generator=generator) * 10
    turn = angle.cos(), angle.sin()
    results = []
    for function, of in ((rotate, x), (reference, x.float())):
        leaf = of.detach().requires_grad_()
        y = function(leaf, *turn)
        y.backward(grad.to(y.dtype))
        results.append((y.detach(), leaf.grad))
    rounding = 2**-8 * 1.01 if dtype == torch.bfloat16 else 1e-5
    for found, exact in zip(*results, strict=True):
        assert found.dtype == dtype
        assert ((found.float() - exact).abs() <= rounding * exact.abs() + 1e-5).all()


def test_gradients_may_stand_apart():
    x, wide, turn = torch.randn(7, 2, 10), torch.randn(7, 2, 17), angles(7, 5)
    grads = []
    for grad in (wide[..., 3:13], wide[..., 3:13].clone()):
        leaf = x.clone().requires_grad_()
        rotate(leaf, *turn).backward(grad)
        grads.append(leaf.grad)
    assert torch.equal(*grads)
