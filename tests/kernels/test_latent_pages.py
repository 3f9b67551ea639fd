"""Latents as integers stand for what they were made of, and native ones are the reference's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.latent_pages import (
    PAGE_SIZE,
    append_integers,
    dequantize,
    integer_bytes,
    integers_of,
    quantize,
)
from abyssal.kernels.registry import reference_only


def drawn_latents(width, rank, power, seed):
    latents = torch.randn(80, width, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    latents[3] = 0
    latents[:, rank:] *= 16
    return latents


def steps_of(integers, width, rank):
    """What one unit of each number is worth (T, W)."""
    bits = (integers.halves[..., None] >> torch.arange(8) & 1).flatten(1)
    halved = bits.repeat_interleave(4, 1)[:, : width - rank]
    c, rotary = integers.scales.float().split(1, 1)
    return torch.cat([c.expand(-1, rank), rotary * (1 - halved / 2)], 1)


@given(width=st.integers(1, 70), power=st.integers(-140, 120), seed=st.integers(0, 99))
def test_integers_are_within_half_a_step_of_what_they_stand_for(width, power, seed):
    rank = width * 3 // 4
    latents = drawn_latents(width, rank, power, seed)
    found = quantize(latents, rank)
    assert found.rows.abs().max() <= 127
    steps = steps_of(found, width, rank)
    assert ((found.rows * steps - latents).abs() <= steps * 0.5001).all()
    for part, scale in zip(latents.tensor_split([rank], 1), found.scales.float().T, strict=True):
        if part.shape[1]:  # a scale is a 127th of the greatest number, or at most 16 BF16 above
            highest = part.abs().amax(-1)
            assert (scale * 127 >= highest * (1 - 2**-20)).all()
            assert (scale * 127 <= highest * (1 + 2**-3) + 16 * 127 * 2.0**-133).all()


@given(rank=st.integers(1, 70), rope=st.integers(0, 40), seed=st.integers(0, 99))
def test_the_scale_chosen_leaves_no_more_error_than_the_least_one_would(rank, rope, seed):
    latents = drawn_latents(rank + rope, rank, 0, seed)
    found = quantize(latents, rank)
    error = (found.rows * steps_of(found, rank + rope, rank) - latents).square()
    for part, own in zip(
        latents.tensor_split([rank], 1), error.tensor_split([rank], 1), strict=True
    ):
        if part.shape[1]:
            bits = (part.abs().amax(-1, keepdim=True) / 127).view(torch.int32)
            least = (bits + 0xFFFF & ~0xFFFF).view(torch.float32)
            plain = torch.where(least > 0, part / least, 0).round() * least
            bound = (plain - part).square().sum(-1)
            assert (own.sum(-1) <= bound * 1.02 + 1e-12).all()  # errors are compared in 1024ths


def test_small_rotary_numbers_beside_large_ones_count_in_halves():
    latents = torch.tensor([[1.0, 127, 1, 1, 1, 30.5, 1, 1, 1, -10.5, 0, 0, 2]])
    rows, scales, halves = quantize(latents, 1)
    assert scales[0, 1] == 1
    assert halves.tolist() == [[0b110]]
    assert rows[0, 1:].tolist() == [127, 1, 1, 1, 61, 2, 2, 2, -21, 0, 0, 4]


@pytest.mark.parametrize(("rank", "rope"), [(256, 32), (512, 64)])
def test_a_token_takes_at_most_51_hundredths_of_its_bytes_in_bfloat16(rank, rope):
    assert integer_bytes(rank + rope, rank) <= 0.51 * 2 * (rank + rope)


@pytest.mark.usefixtures("twins")
@given(
    rank=st.integers(0, 70),
    rope=st.integers(0, 70),
    power=st.integers(-140, 120),
    seed=st.integers(0, 99),
)
def test_native_integers_are_those_of_torch(rank, rope, power, seed):
    width = rank + rope
    if not width:
        return
    draw = torch.Generator().manual_seed(seed)
    latents = torch.randn(50, width, generator=draw) * 2.0**power
    latents[7], latents[8, 0], latents[9, -1] = 0, torch.nan, -torch.inf
    places = torch.randperm(4 * PAGE_SIZE, generator=draw)[:50]
    size = PAGE_SIZE * integer_bytes(width, rank)
    ours, theirs = (torch.zeros(4, size, dtype=torch.int8) for _ in range(2))
    append_integers(ours, places, latents, rank)
    with reference_only():
        append_integers(theirs, places, latents, rank)
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(
        dequantize(ours, width, rank), dequantize(theirs, width, rank), **exactly
    )
    expected = quantize(latents, rank)
    for stored, numbers in zip(integers_of(ours, width, rank), expected, strict=True):
        torch.testing.assert_close(stored.flatten(0, 1)[places], numbers, **exactly)
