"""One pass of AdamW is the reference, and sums and norms of gradients are what they are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.adamw import Rates, adamw, add, norm, reference, scaled

SIZES = st.sampled_from([1, 3, 16, 17, 250, 16384, 40001])
TYPES = st.sampled_from([torch.bfloat16, torch.float32])


def rates(steps, lr=0.01, decay=0.1):
    return Rates(lr=lr, decay=decay, betas=(0.9, 0.95), eps=1e-8, steps=steps)


def start(size, moments, seed=0):
    """master, first and second of one parameter under way."""
    generator = torch.Generator().manual_seed(seed)
    master, first = torch.randn(2, size, generator=generator)
    second = torch.rand(size, generator=generator)
    return master, (first * 0.1).to(moments), second.to(moments)


@given(SIZES, TYPES, TYPES, st.sampled_from([1, 2, 1000]), st.sampled_from([1.0, 0.37]))
def test_it_is_the_reference_and_writes_the_working_copy(size, kind, moments, steps, scale):
    grad = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(kind)
    ours, theirs = start(size, moments), start(size, moments)
    working = torch.empty(size, dtype=torch.bfloat16)
    adamw(ours[0], grad, scale, ours[1], ours[2], working, rates(steps))
    reference(theirs[0], grad.float() * scale, theirs[1], theirs[2], rates(steps))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    one_rounding = 2**-7 if moments == torch.bfloat16 else 1e-5  # a tie may fall to either side
    for found, expected in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=one_rounding, atol=1e-7)
    assert torch.equal(working, ours[0].bfloat16())


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32])
def test_no_gradient_is_one_of_zeros(moments):
    ours, theirs = start(100, moments), start(100, moments)
    working = torch.empty(100, dtype=torch.bfloat16)
    adamw(ours[0], None, 0.5, ours[1], ours[2], working, rates(3))
    adamw(theirs[0], torch.zeros(100), 0.5, theirs[1], theirs[2], working, rates(3))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_gradient_spoils_its_number_and_no_other(value):
    grad = torch.randn(40)
    grad[33] = value
    master, first, second = start(40, torch.float32)
    adamw(master, grad, 1.0, first, second, torch.empty(40, dtype=torch.bfloat16), rates(2))
    assert not master[33].isfinite()
    others = torch.arange(40) != 33
    assert master[others].isfinite().all()


@pytest.mark.parametrize("size", [(5, 7), (7, 1)])
def test_a_parameter_that_lies_transposed_moves_too(size):
    ours = [t.view(size).T for t in start(math.prod(size), torch.float32)]
    theirs = [t.clone(memory_format=torch.contiguous_format) for t in ours]
    grad = torch.randn(size).T
    for master, first, second in (ours, theirs):
        adamw(master, grad, 1.0, first, second, master, rates(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@given(st.lists(st.tuples(SIZES, TYPES), min_size=1, max_size=4), st.integers(0, 5))
def test_the_norm_is_that_of_all_numbers(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(size, generator=generator).to(kind) for size, kind in shapes]
    expected = torch.cat([t.double() for t in tensors]).norm().item()
    assert norm(tensors) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_norm_of_bad_numbers_is_bad(value):
    tensor = torch.randn(100)
    tensor[99] = value
    assert not math.isfinite(norm([torch.randn(20), tensor]))
    assert norm([]) == 0.0


@given(SIZES, TYPES, TYPES)
def test_sums_are_taken_in_float32(size, one, other):
    x, y = torch.randn(size).to(one), torch.randn(size).to(other)
    out = torch.empty(size)
    assert add(x, y, out) is out
    assert torch.equal(out, x.float() + y.float())
    assert torch.equal(add(out, y, out), x.float() + y.float() + y.float())


@given(SIZES, TYPES, TYPES)
def test_scaled_is_a_product_rounded_once(size, kind, into):
    x = torch.randn(size).to(kind)
    found = scaled(x, torch.tensor(0.3), into)
    assert found.dtype == into
    assert torch.equal(found, (x * torch.tensor(0.3)).to(into))


def test_the_number_of_threads_changes_no_bit(threads):
    results = []
    grad = torch.randn(100_001, generator=torch.Generator().manual_seed(1)).bfloat16()
    for count in (1, 2, 5):
        threads(count)
        master, first, second = start(100_001, torch.bfloat16)
        adamw(master, grad, 0.3, first, second, torch.empty_like(grad), rates(2))
        results.append((norm([grad, master]), master))
    for found, master in results[1:]:
        assert found == results[0][0]
        assert torch.equal(master, results[0][1])
