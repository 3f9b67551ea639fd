"""Scales and 8-bit numbers: what must hold of every block, whatever its size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from abyssal.float8 import E4M3, E5M2, quantize, scale_of

SIDES = st.sampled_from([1, 3, 127, 128, 129, 160, 300])
BLOCKS = st.sampled_from([(1, 128), (128, 128), (128, 1), (3, 5)])
FORMS = st.sampled_from([E4M3, E5M2])


def matrix(rows, width, seed):
    """Numbers of many sizes, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    x *= torch.exp(3 * torch.randn(rows, width, generator=generator))
    return torch.where(torch.rand(rows, width, generator=generator) < 0.05, 0.0, x)


def decoded(numbers, scale, block):
    """numbers times the scale of their blocks, in float64: the plain way."""
    rows, width = numbers.shape
    wide = scale.double().repeat_interleave(block[0], 0)[:rows]
    return numbers.double() * wide.repeat_interleave(block[1], 1)[:, :width]


@given(SIDES, SIDES, BLOCKS, FORMS, st.booleans(), st.integers(0, 3))
def test_a_number_is_off_by_half_a_step_of_its_own_or_of_the_least(
    rows, width, block, form, power_of_two, seed
):
    x = matrix(rows, width, seed)
    numbers, scale = quantize(x, block, form, power_of_two=power_of_two)
    bits, least = (3, 2.0**-9) if form is E4M3 else (2, 2.0**-16)
    spread = decoded(torch.ones_like(x), scale, block)
    found = decoded(numbers, scale, block)
    most = torch.maximum(x.double().abs() * 2.0 ** -(bits + 1), spread * least / 2)
    assert ((found - x.double()).abs() <= most * (1 + 1e-6)).all()
    assert (found.abs() <= spread * form.largest).all()


@given(SIDES, SIDES, BLOCKS, FORMS, st.booleans())
def test_what_came_out_goes_in_again_unchanged(rows, width, block, form, power_of_two):
    numbers, scale = quantize(matrix(rows, width, 0), block, form, power_of_two=power_of_two)
    again = decoded(numbers, scale, block).float()
    numbers, scale = quantize(again, block, form, power_of_two=power_of_two)
    torch.testing.assert_close(decoded(numbers, scale, block).float(), again, rtol=3e-7, atol=0)
    if power_of_two:
        assert torch.equal(decoded(numbers, scale, block).float(), again)


@given(SIDES, SIDES, BLOCKS, FORMS)
def test_a_partial_block_is_one_filled_up_with_zeros(rows, width, block, form):
    x = matrix(rows, width, 1)
    filled = F.pad(x, (0, -width % block[1], 0, -rows % block[0]))
    numbers, scale = quantize(x, block, form)
    whole, same = quantize(filled, block, form)
    assert torch.equal(numbers.float(), whole[:rows, :width].float())
    assert torch.equal(scale, same)


@given(st.floats(0, 2.0**100, width=32))
def test_scales_that_are_powers_of_two_are_the_next_above(amax):
    plain = float(scale_of(torch.tensor([amax])))
    scale = float(scale_of(torch.tensor([amax]), power_of_two=True))
    assert torch.frexp(torch.tensor(scale)).mantissa == 0.5
    assert plain <= max(scale, 2.0**-126) < 2 * max(plain, 2.0**-126)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_nan_and_infinity_come_out_and_zeros_stay_zeros(power_of_two):
    x = torch.zeros(3, 128)
    x[0, 5], x[1, 7] = torch.nan, torch.inf
    numbers, scale = quantize(x, (1, 128), power_of_two=power_of_two)
    found = decoded(numbers, scale, (1, 128))
    assert found[0].isnan().all()
    assert not found[1, 7].isfinite()
    assert (found[2] == 0).all()
    assert scale[2] == 1


def test_numbers_beyond_the_largest_are_cut_not_cast():
    from abyssal.float8 import encode

    x = torch.tensor([449.0, -1e9, 464.0, 448.0])
    assert encode(x, torch.ones(4)).float().tolist() == [448, -448, 448, 448]
