"""Weights that came from FP8 go back to the bytes they came from, scales and numbers."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.checkpoint import fp8
from abyssal.quant.round_trip import NORMAL, is_ambiguous, recode
from abyssal.quant.weight_only import quantize_fp8, scale_fp8

sizes = st.integers(1, 9)
blocks = st.sampled_from([(4, 4), (3, 5), (2, 7)])
dtypes = st.sampled_from([torch.bfloat16, torch.float32])


def scales(least, most):
    plain = st.floats(least, most, width=32) | st.floats(-most, -least, width=32)
    power = st.integers(round(math.log2(least)), round(math.log2(most))).map(lambda n: 2.0**n)
    return plain | power


@st.composite
def stored(draw, scale):
    rows, columns, block = draw(sizes), draw(sizes), draw(blocks)
    drawn = torch.tensor(list(draw(st.binary(min_size=rows * columns, max_size=rows * columns))))
    # All codes of e4m3 but NaN: -0 and subnormals too.
    codes = torch.where(drawn & 0x7F == 0x7F, drawn - 1, drawn).to(torch.uint8)
    numbers = codes.view(rows, columns)
    down, across = fp8.scale_shape((rows, columns), block)
    values = draw(st.lists(scale, min_size=down * across, max_size=down * across))
    found = torch.tensor(values, dtype=torch.float32).view(down, across)
    return numbers.view(torch.float8_e4m3fn), found, block


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@given(matrix=stored(scales(*NORMAL)), dtype=dtypes)
def test_numbers_and_scales_come_back_to_the_bit(matrix, dtype):
    numbers, scale, block = matrix
    assert not is_ambiguous(scale)
    weight = fp8.dequantize(numbers, scale, block, dtype)
    again = recode(weight, scale, block)
    assert same_bits(again.numbers, numbers)
    assert same_bits(again.scale, scale)


@given(matrix=stored(scales(2.0**-140, 2.0**110) | st.just(0.0)), dtype=dtypes)
def test_so_they_do_from_any_scale_with_the_numbers_that_come_along(matrix, dtype):
    numbers, scale, block = matrix
    weight = fp8.dequantize(numbers, scale, block, dtype)
    again = recode(weight, scale, block, numbers=numbers if is_ambiguous(scale) else None)
    assert same_bits(again.numbers, numbers)
    assert same_bits(again.scale, scale)


@given(matrix=stored(scales(2.0**-20, 2.0**20)), at=st.integers(0, 80), dtype=dtypes,
       power_of_two=st.booleans())  # fmt: skip
def test_a_changed_block_is_quantized_anew_and_the_others_are_not(matrix, at, dtype, power_of_two):
    numbers, scale, block = matrix
    weight = fp8.dequantize(numbers, scale, block, dtype)
    row, column = at % len(weight), at // len(weight) % weight.shape[1]
    i, j = row // block[0], column // block[1]
    weight[row, column] = 600 * scale[i, j]  # beyond the largest with that scale
    again = recode(weight, scale, block, power_of_two=power_of_two)
    new = scale_fp8(weight, block, power_of_two=power_of_two)
    assert again.scale[i, j] == new[i, j]
    if power_of_two:
        assert new.log2().frac().eq(0).all()
    elsewhere = torch.ones(weight.shape, dtype=torch.bool)
    elsewhere[i * block[0] :, j * block[1] :][: block[0], : block[1]] = False
    assert torch.equal(again.numbers.view(torch.uint8)[elsewhere],
                       numbers.view(torch.uint8)[elsewhere])  # fmt: skip
    part = weight[i * block[0] :, j * block[1] :][: block[0], : block[1]].float()
    found = fp8.dequantize(again.numbers, again.scale, block, torch.float32)
    found = found[i * block[0] :, j * block[1] :][: block[0], : block[1]]
    assert ((found - part).abs() <= part.abs() / 15 + new[i, j] * 2**-9).all()


def test_a_scale_cannot_be_told_from_weights_in_bfloat16():
    """Why the scales come along: made anew from what they gave, they are others."""
    numbers, scale = quantize_fp8(torch.randn(128, 128))
    again = quantize_fp8(fp8.dequantize(numbers, scale))
    assert not torch.equal(again.scale, scale)
    assert torch.equal(recode(fp8.dequantize(numbers, scale), scale).scale, scale)
