"""Fewer bits by the formulas: what comes back is as near as the formats allow, whatever went in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.checkpoint import fp8
from abyssal.quant import weight_only
from abyssal.quant.weight_only import (
    FACTORS,
    dequantize_int4,
    dequantize_int8,
    linear_w4a8,
    linear_w8a8,
    quantize_activation_int8,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
)

rows = st.integers(1, 9)
columns = st.integers(1, 200)
sizes = st.sampled_from([1e-30, 1e-3, 1.0, 1e4])
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@given(rows=rows, columns=columns, size=sizes, dtype=dtypes)
def test_int8_is_off_by_half_a_step_at_most_and_its_largest_is_127(rows, columns, size, dtype):
    weight = (torch.randn(rows, columns) * size).to(dtype)
    numbers, scale = quantize_int8(weight)
    assert (numbers.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (rows, 1))
    assert (numbers.abs().amax(1) == 127).all()
    error = (dequantize_int8(numbers, scale) - weight.float()).abs()
    assert (error <= scale * 0.5001).all()


@given(rows=rows, columns=columns, group=st.sampled_from([64, 8, 128]), size=sizes, dtype=dtypes)
def test_int4_is_no_worse_than_the_widest_scale_in_any_group(rows, columns, group, size, dtype):
    weight = (torch.randn(rows, columns) * size).to(dtype)
    numbers, scale = quantize_int4(weight, group)
    assert numbers.dtype == torch.uint8
    assert numbers.max() <= 15
    assert (scale.dtype, scale.shape) == (torch.bfloat16, (rows, -(-columns // group)))
    found = dequantize_int4(numbers, scale, group)
    for at in range(0, columns, group):
        part = weight[:, at : at + group].float()
        step = (part.abs().amax(1, keepdim=True) * FACTORS[0] / 8).bfloat16().float()
        plain = (part / step).round().clamp(-8, 7) * step
        ours = (found[:, at : at + group] - part).square().sum(1)
        assert (ours <= (plain - part).square().sum(1) * 1.0001).all()


def test_the_search_for_int4_scales_pays():
    weight = torch.randn(64, 512)
    found = dequantize_int4(*quantize_int4(weight))
    step = weight.unflatten(1, (-1, 64)).abs().amax(-1, keepdim=True) / 7
    plain = ((weight.unflatten(1, (-1, 64)) / step).round() * step).flatten(1)
    assert (found - weight).norm() < 0.9 * (plain - weight).norm()
    assert (found - weight).norm() < 0.1 * weight.norm()


@given(
    rows=st.integers(1, 300), columns=st.integers(1, 300), size=st.sampled_from([1e-6, 1.0, 1e4])
)
def test_fp8_is_within_half_a_step_of_three_bits_in_each_block(rows, columns, size):
    weight = torch.randn(rows, columns) * size
    numbers, scale = quantize_fp8(weight)
    assert numbers.dtype == torch.float8_e4m3fn
    assert scale.shape == fp8.scale_shape(weight.shape)
    assert numbers.float().abs().max() == 448
    spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    error = (numbers.float() * spread - weight).abs()
    assert (error <= weight.abs() / 16 * 1.001 + spread * 2**-10).all()
    assert (fp8.dequantize(numbers, scale).float() - numbers.float() * spread).abs().max() <= (
        weight.abs().max() * 2**-8
    )


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4, quantize_fp8])
def test_zeros_stay_zeros_beside_anything(quantize):
    weight = torch.zeros(3, 130)
    weight[1] = torch.randn(130)
    weight[1, 64] = 0.0
    numbers, scale = quantize(weight)
    assert scale.isfinite().all()
    restore = {
        quantize_int8: dequantize_int8,
        quantize_int4: dequantize_int4,
        quantize_fp8: fp8.dequantize,
    }[quantize]
    assert not restore(numbers, scale)[weight == 0].any()


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_a_large_matrix_is_worked_on_in_parts_to_the_same_numbers(quantize, monkeypatch):
    weight = torch.randn(50, 130)
    whole = quantize(weight)
    monkeypatch.setattr(weight_only, "_AT_ONCE", 400)
    for one, other in zip(whole, quantize(weight), strict=True):
        assert torch.equal(one, other)


@given(tokens=rows, inputs=columns, outputs=st.integers(1, 40))
def test_products_in_integers_are_those_of_what_the_integers_stand_for(tokens, inputs, outputs):
    x, weight = torch.randn(tokens, inputs) * 3, torch.randn(outputs, inputs)
    q, s = quantize_activation_int8(x)
    for quantize, multiply, restore in (
        (quantize_int8, linear_w8a8, dequantize_int8),
        (quantize_int4, linear_w4a8, dequantize_int4),
    ):
        numbers, scale = quantize(weight)
        expected = (q.double() * s) @ restore(numbers, scale).double().T
        found = multiply(x, numbers, scale)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * inputs)


def test_an_activation_that_is_not_finite_shows_in_its_token_alone():
    x = torch.randn(3, 8)
    x[1, 2] = torch.nan
    y = linear_w8a8(x, *quantize_int8(torch.randn(5, 8)))
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
