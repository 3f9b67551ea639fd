"""Numbers of 12 bits: rounded to the nearest, kept in a byte and a half."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.fp8_e5m6 import LARGEST, pack, rounded, unpack

ALL = torch.arange(-(2**15), 2**15, 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
ALL = ALL[ALL.isfinite()].float().unique()  # every number of the format


def test_there_are_as_many_numbers_as_12_bits_have_and_each_stays_what_it_is():
    assert len(ALL) == 2 * 31 * 64 - 1  # without infinities, and zero once
    assert ALL.max() == LARGEST
    assert torch.equal(rounded(ALL).float(), ALL)


@given(st.floats(-7e4, 7e4, width=32))
def test_it_is_the_nearest_number_and_of_two_the_even_one(value):
    found = rounded(torch.tensor([value])).float()
    x = torch.tensor(max(-LARGEST, min(LARGEST, value)), dtype=torch.float64)
    distance = (ALL.double() - x).abs()
    nearest = ALL[distance == distance.min()]
    assert found in nearest
    if len(nearest) == 2:
        assert found.half().view(torch.int16) % 32 == 0  # the last of the six bits


@given(st.sampled_from([1, 5, 64]), st.sampled_from([1, 2, 127, 160, 257]), st.integers(0, 2))
def test_packed_and_unpacked_it_is_within_half_a_step(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    x *= torch.exp(3 * torch.randn(rows, width, generator=generator))
    for kind in (torch.float32, torch.bfloat16):
        kept = pack(x.to(kind))
        found, given = unpack(kept), x.to(kind).float()
        assert ((found - given).abs() <= given.abs() * 2.0**-7 + 2.0**-20).all()
        assert torch.equal(unpack(pack(found)), found)
        assert kept.num_bytes == rows * (width + (width + 1) // 2 + 4 * -(-width // 128))


def test_scales_are_powers_of_two():
    mantissa, _ = torch.frexp(pack(torch.randn(40, 300) * 1e3).scale)
    assert (mantissa == 0.5).all()
