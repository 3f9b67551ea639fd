"""Tiles of FP8 numbers, and their native twins: the same bytes as the definition's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal import float8
from abyssal.float8 import E4M3, E5M2
from abyssal.kernels.fp8_tiles import TILE, Tiled, blocks, columns, decode, regrouped, tiles

SIDES = st.sampled_from([1, 17, 96, 128, 130, 257])
FORMS = st.sampled_from([E4M3, E5M2])
TYPES = st.sampled_from([torch.bfloat16, torch.float32])


def matrix(rows, width, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    return (x * torch.exp(4 * torch.randn(rows, width, generator=generator))).to(dtype)


def assert_same(found, expected):
    numbers, scale = expected
    assert torch.equal(found.numbers.view(torch.uint8), numbers.view(torch.uint8))
    assert torch.equal(found.scale, scale)


@given(SIDES, SIDES, FORMS, TYPES, st.booleans(), st.integers(0, 2))
def test_tiles_are_the_definition_to_the_byte(rows, width, form, dtype, power_of_two, seed):
    x = matrix(rows, width, seed, dtype)
    how = {"power_of_two": power_of_two}
    assert_same(tiles(x, form, **how), float8.quantize(x, (1, TILE), form, **how))
    assert_same(columns(x, form, **how), float8.quantize(x.T, (1, TILE), form, **how))
    apart = torch.cat([x, x], 1)[:, :width]  # rows that do not follow one another
    assert_same(tiles(apart, form, **how), tiles(x, form, **how)[:2])
    assert_same(columns(apart, form, **how), columns(x, form, **how)[:2])


@given(st.sampled_from([(), (2,), (3, 2)]), SIDES, SIDES)
def test_blocks_are_the_definition_to_the_byte_in_every_matrix_of_a_stack(stack, rows, width):
    weight = torch.randn(*stack, rows, width)
    assert_same(blocks(weight), float8.quantize(weight))


@given(SIDES, SIDES, FORMS)
def test_decoding_multiplies_by_the_scales(rows, width, form):
    found = tiles(matrix(rows, width, 0), form)
    wide = found.scale.repeat_interleave(TILE, 1)[:, :width]
    assert torch.equal(decode(found), found.numbers.float() * wide)


@given(SIDES, SIDES)
def test_regrouping_reads_turns_and_quantizes_once_more(rows, width):
    x = tiles(matrix(rows, width, 3))
    assert_same(regrouped(x), columns(decode(x))[:2])
    exact = tiles(matrix(rows, width, 3).sign(), power_of_two=True)
    assert torch.equal(decode(regrouped(exact, power_of_two=True)).T, decode(exact))


@given(SIDES, SIDES)
def test_transposed_weights_keep_their_numbers_and_blocks(rows, width):
    weight = blocks(torch.randn(rows, width))
    assert torch.equal(decode(weight.T).T, decode(weight))
    assert_same(weight.T.T, weight[:2])


@given(SIDES, SIDES)
def test_wider_spreads_share_the_largest_scale_of_theirs(rows, width):
    x = matrix(rows, width, 4)
    fine, block, whole = (tiles(x, spread=spread).scale for spread in ("tile", "block", "tensor"))
    assert torch.equal(whole, fine.max().expand_as(whole))
    for at in range(0, rows, TILE):
        group = fine[at : at + TILE].amax(0)
        assert torch.equal(block[at : at + TILE], group.expand_as(block[at : at + TILE]))


@pytest.mark.parametrize("shape", [(0, 128), (5, 0), (0, 0)])
def test_nothing_becomes_nothing(shape):
    for found in (tiles(torch.zeros(shape)), columns(torch.zeros(shape)).numbers.T):
        numbers = found.numbers if isinstance(found, Tiled) else found
        assert numbers.shape == shape


@pytest.mark.usefixtures("twins")
def test_the_number_of_threads_changes_no_bit(threads):
    x = matrix(700, 200, 5)
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append((*tiles(x)[:2], *columns(x)[:2]))
    for parts in zip(*found, strict=True):
        assert all(torch.equal(part.float(), parts[0].float()) for part in parts)


def test_a_tile_takes_a_byte_a_number_and_a_scale():
    assert tiles(torch.randn(10, 160)).num_bytes == 10 * 160 + 10 * 2 * 4
