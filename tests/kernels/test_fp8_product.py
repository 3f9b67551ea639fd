"""Products in FP8: exact but for float32 sums, and what a sum of 14 bits would make of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.float8 import E4M3, E5M2
from abyssal.kernels.fp8_product import aligned_sum, product, promoted, reference, unpromoted
from abyssal.kernels.fp8_tiles import blocks, decode, tiles

SIDES = st.sampled_from([1, 16, 33, 96, 160])
DEPTHS = st.sampled_from([1, 31, 128, 160, 300])


@given(SIDES, SIDES, DEPTHS, st.booleans(), st.sampled_from([E4M3, E5M2]))
def test_it_is_the_product_of_the_decoded_numbers_within_float32(M, N, K, weights, form):
    a = tiles(torch.randn(M, K), form)
    b = blocks(torch.randn(N, K)) if weights else tiles(torch.randn(N, K))
    exact = decode(a).double() @ decode(b).double().T
    size = decode(a).double().abs() @ decode(b).double().abs().T
    for function in (reference, product):
        assert ((function(a, b) - exact).abs() <= size * (K + 4) * 2.0**-24 + 1e-30).all()


@given(st.sampled_from([1, 2, 5]))
def test_formats_bound_the_error_of_a_product(seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(64, 512, generator=generator), torch.randn(48, 512, generator=generator)
    exact = x.double() @ w.double().T
    size = x.double().abs() @ w.double().abs().T
    for form, bits in ((E4M3, 4), (E5M2, 3)):  # half a step of either factor, at most
        found = product(tiles(x, form), blocks(w))
        bound = size * ((1 + 2.0**-bits) * (1 + 2.0**-4) - 1) + 1e-2
        assert ((found - exact).abs() <= bound).all()
        # errors are independent: 3.7 % is what two factors in e4m3 make of random numbers
        assert (found - exact).norm() / exact.norm() < 0.04 * 2 ** (4 - bits)


def test_it_adds_to_what_is_there_or_replaces_it():
    a, b = tiles(torch.randn(40, 160)), tiles(torch.randn(20, 160))
    wide = torch.ones(40, 50)
    product(a, b, wide[:, 7:27])
    torch.testing.assert_close(wide[:, 7:27], reference(a, b))
    product(a, b, wide[:, 7:27], add=True)
    torch.testing.assert_close(wide[:, 7:27], 2 * reference(a, b))
    assert (wide[:, :7] == 1).all()
    assert (wide[:, 27:] == 1).all()


@pytest.mark.parametrize(("M", "N", "K"), [(0, 4, 128), (4, 0, 128), (4, 4, 0)])
def test_without_rows_or_inputs_it_is_empty_or_zero(M, N, K):
    found = product(tiles(torch.zeros(M, K)), tiles(torch.zeros(N, K)))
    assert found.shape == (M, N)
    assert not found.any()


@pytest.mark.usefixtures("twins")
def test_rows_do_not_depend_on_their_company_nor_on_threads(threads):
    x, w = torch.randn(500, 200), blocks(torch.randn(70, 200))
    whole = product(tiles(x), w)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(product(tiles(x), w), whole)
    for rows in (slice(3, 4), slice(10, 77)):
        assert torch.equal(product(tiles(x[rows]), w), whole[rows])


# Sums of 14 bits


@given(st.lists(st.integers(-2000, 2000), min_size=1, max_size=32))
def test_what_fits_into_the_bits_is_added_exactly(numbers):
    parts = torch.tensor([numbers], dtype=torch.float32)
    assert aligned_sum(parts, 11).item() == sum(numbers)


def test_what_lies_below_the_bits_of_the_largest_is_cut_off():
    assert aligned_sum(torch.tensor([1.0, 2.0**-13]), 14).item() == 1 + 2.0**-13
    assert aligned_sum(torch.tensor([1.0, 2.0**-14]), 14).item() == 1
    assert aligned_sum(torch.tensor([1.0, -(2.0**-14)]), 14).item() == 1  # towards zero


def test_4096_inputs_are_some_percent_off_without_promotion_and_less_than_a_tenth_with_it():
    """Section 3.5.2 has "nearly 2 %" of random matrices, whose distribution it does not name."""
    x, w = torch.rand(16, 4096), torch.rand(16, 4096)
    a, b = tiles(x, spread="tensor"), tiles(w, spread="tensor")
    exact = decode(a).double() @ decode(b).double().T
    without, with_it = (
        float(((f(a, b) - exact).abs() / exact).max()) for f in (unpromoted, promoted)
    )
    assert 0.005 < without < 0.1
    assert with_it < 0.001
    assert without > 50 * with_it


def test_many_bits_are_the_product():
    a, b = tiles(torch.randn(9, 200), spread="tensor"), tiles(torch.randn(7, 200), spread="tensor")
    for function in (unpromoted, promoted):
        torch.testing.assert_close(function(a, b, bits=23), reference(a, b), rtol=1e-4, atol=1e-3)
