"""Rotation with a backward of its own turns neighboring pairs, and only turns them."""

import torch

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
