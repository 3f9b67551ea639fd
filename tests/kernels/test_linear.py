"""Linear layers over packed weights are their definition, alone and in any company."""

import pytest
import torch

from abyssal.kernels import registry
from abyssal.kernels.linear import (
    BLOCK,
    GROUP,
    LANES,
    Kind,
    empty,
    linear,
    pack,
    pack_into,
    reference,
)

pytestmark = pytest.mark.skipif(
    registry.native("linear") is None, reason="this machine has no native kernels"
)

# Relative to sum |x| |w|: float sums of up to 500 numbers; INT8 is exact but for a few steps.
BOUND = {Kind.F32: 2e-6, Kind.BF16: 2e-6, Kind.INT8: 3e-7, Kind.INT4: 1e-6, Kind.FP8: 2e-6}


def stored(kind, n, k, generator):
    """A weight (n, k) and its scales as a file has them."""

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    def scales(*shape):
        return torch.rand(shape, generator=generator) * 0.01 + 0.001

    match kind:
        case Kind.INT8:
            return integers(-128, 128, n, k).to(torch.int8), scales(n, 1)
        case Kind.INT4:
            return integers(0, 16, n, k).to(torch.uint8), scales(n, -(-k // GROUP))
        case Kind.FP8:
            codes = integers(0, 256, n, k).to(torch.uint8)
            codes[codes & 0x7F == 0x7F] = 0x3C
            return codes.view(torch.float8_e4m3fn), scales(-(-n // BLOCK), -(-k // BLOCK))
        case _:
            weight = torch.randn(n, k, generator=generator)
            return (weight.bfloat16() if kind is Kind.BF16 else weight), None


def magnitude(kind, x, weight, scale):
    """Sum |x| |w| of every output (T, N), roughly: what errors are measured by."""
    if kind is Kind.INT4:
        weight = (weight.double() - 8).abs() + 8
    elif kind is Kind.INT8:
        return reference(kind, x, weight, scale).abs() + 1e-30
    else:
        weight = weight.double().abs()
    return reference(kind, x.abs(), weight, scale)


def check(kind, x, weight, scale, found):
    expected = reference(kind, x, weight, scale)
    error = (found.double() - expected).abs()
    assert (error <= BOUND[kind] * magnitude(kind, x, weight, scale) + 1e-30).all()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [
        (1, 1, 1),
        (2, 17, 3),
        (3, 16, 64),
        (1, 100, 129),
        (4, 33, 65),
        (5, 130, 300),
        (9, 80, 127),
        (17, 100, 17),
        (33, 64, 128),
        (70, 47, 500),
        (64, 256, 256),
    ],
)
def test_it_is_its_definition(kind, rows, n, k):
    generator = torch.Generator().manual_seed(rows * 1000 + n + k)
    weight, scale = stored(kind, n, k, generator)
    x = torch.randn(rows, k, generator=generator)
    check(kind, x, weight, scale, linear(x, pack(kind, weight, scale)))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("n", "k"), [(100, 333), (64, 1100)])
def test_no_company_changes_a_row(kind, n, k):
    generator = torch.Generator().manual_seed(n)
    weight, scale = stored(kind, n, k, generator)
    packed = pack(kind, weight, scale)
    x = torch.randn(70, k, generator=generator)
    alone = torch.cat([linear(row[None], packed, threads=1) for row in x])
    for rows in (2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 70):
        assert torch.equal(linear(x[:rows], packed, threads=1), alone[:rows])
        assert torch.equal(linear(x[-rows:], packed, threads=1), alone[-rows:])


@pytest.mark.parametrize("kind", Kind)
def test_threads_share_rows_or_panels_and_change_nothing(kind):
    generator = torch.Generator().manual_seed(0)
    weight, scale = stored(kind, 200, 150, generator)
    packed = pack(kind, weight, scale)
    x = torch.randn(11, 150, generator=generator)
    alone = linear(x, packed, threads=1)
    for threads in (2, 3, 5):
        assert torch.equal(linear(x, packed, threads=threads), alone)
        assert torch.equal(linear(x, packed, threads=threads, by_rows=True), alone)


def panels(values, kp, per):
    """(N, K) to the order of panels, `per` inputs of an output side by side, by the definition."""
    n, k = values.shape
    full = values.new_zeros(-(-n // LANES) * LANES, kp)
    full[:n, :k] = values
    tiles = full.view(-1, LANES, kp // per, per)  # panel, output, step, input
    return tiles.transpose(1, 2).contiguous().flatten()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 100), (32, 128), (40, 70), (16, 64), (31, 200)])
def test_the_layout_is_that_of_formats(kind, n, k):
    weight, scale = stored(kind, n, k, torch.Generator().manual_seed(k))
    packed = pack(kind, weight, scale)
    kp = packed.kp
    whole = {Kind.F32: 1, Kind.BF16: 32}.get(kind, 64)
    assert kp == -(-k // whole) * whole
    match kind:
        case Kind.F32:
            expected = panels(weight, kp, 1).view(torch.uint8)
        case Kind.BF16:
            expected = panels(weight, kp, 2).view(torch.uint8)
        case Kind.INT8:
            expected = panels(weight, kp, 4).view(torch.uint8)
            sums = torch.zeros(len(packed.sum), dtype=torch.int32)
            sums[:n] = weight.sum(1, dtype=torch.int32)
            assert torch.equal(packed.sum, sums)
            assert torch.equal(packed.scale[:n], scale[:, 0])
            assert not packed.scale[n:].any()
        case Kind.FP8:
            expected = panels(weight.view(torch.uint8), kp, 2)
            assert torch.equal(packed.scale, scale)
        case Kind.INT4:
            tiles = panels(weight ^ 8, kp, 4).view(-1, 2, 512) ^ 8  # filled up with 8
            expected = (tiles[:, 0] | tiles[:, 1] << 4).flatten()
            assert torch.equal(packed.scale[: scale.shape[1], :n], scale.T)
            assert not packed.scale[:, n:].any()
    assert torch.equal(packed.data, expected)


def test_int4_may_come_two_numbers_a_byte():
    for k in (1, 7, 64, 100, 130):
        weight, scale = stored(Kind.INT4, 20, k, torch.Generator().manual_seed(k))
        filled = torch.zeros(20, -(-k // 8) * 8, dtype=torch.uint8)
        filled[:, :k] = weight
        halves = filled[:, 0::2] | filled[:, 1::2] << 4
        if halves.shape[1] != k:  # else a byte a number is meant
            assert torch.equal(
                pack(Kind.INT4, halves, scale, k).data, pack(Kind.INT4, weight, scale).data
            )


@pytest.mark.parametrize("kind", Kind)
def test_experts_are_packed_into_a_stack(kind):
    stack = empty(kind, 24, 72, 3)
    x = torch.randn(5, 72)
    for e in range(3):
        weight, scale = stored(kind, 24, 72, torch.Generator().manual_seed(e))
        pack_into(stack[e], weight, scale)
    for e in range(3):
        weight, scale = stored(kind, 24, 72, torch.Generator().manual_seed(e))
        assert torch.equal(linear(x, stack[e]), linear(x, pack(kind, weight, scale)))


@pytest.mark.parametrize("rows", [1, 3, 20, 40])
def test_every_e4m3_code_is_decoded_exactly(rows):
    codes = torch.arange(256, dtype=torch.uint8).repeat_interleave(2).view(-1, 64)  # (8, 64)
    weight = codes.view(torch.float8_e4m3fn)
    packed = pack(Kind.FP8, weight, torch.ones(1, 1))
    for one in range(0, 64, 7):
        x = torch.zeros(rows, 64)
        x[:, one] = 1
        found = linear(x, packed)
        has_nan = weight.float().isnan().any(1).expand(rows, -1)
        assert torch.equal(found.isnan(), has_nan)
        expected = weight.float()[:, one].expand(rows, -1)
        assert torch.equal(found[~has_nan], expected[~has_nan])


def test_one_e4m3_code_at_a_time():
    for code in range(256):
        weight = torch.full((1, 1), code, dtype=torch.uint8).view(torch.float8_e4m3fn)
        found = linear(torch.ones(1, 1), pack(Kind.FP8, weight, torch.ones(1, 1)))
        torch.testing.assert_close(found, weight.float(), atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("rows", [1, 2, 4, 7, 40])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_in_its_row(kind, rows, bad):
    weight, scale = stored(kind, 20, 70, torch.Generator().manual_seed(1))
    packed = pack(kind, weight, scale)
    x = torch.randn(rows, 70)
    clean = linear(x, packed)
    x[-1, 5] = bad
    found = linear(x, packed)
    assert torch.equal(found[:-1], clean[:-1])
    assert not found[-1].isfinite().any()


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
def test_a_row_of_zeros_and_a_row_of_the_largest_numbers(kind):
    weight, scale = stored(kind, 20, 700, torch.Generator().manual_seed(1))
    if kind is Kind.INT8:
        weight[0], weight[1] = -128, 127
    x = torch.zeros(3, 700)
    x[1], x[2] = 3e38, -1e-31
    found = linear(x, pack(kind, weight, scale))
    assert not found[0].any()
    assert not found[2].any()
    x[1] = 2.0
    check(kind, x, weight, scale, linear(x, pack(kind, weight, scale)))
