"""Attention in dense blocks is attention by definition, whatever the lengths of the sequences."""

from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.attention import mla_attention, reference
from abyssal.kernels.causal_attention import causal_attention, causal_reference, fused_attention
from abyssal.kernels.registry import native, reference_only

H, D, V = 2, 6, 4


def inputs(lengths, dtype=torch.float32):
    """Random q, k, v, a gradient for the output, and the borders."""
    T = sum(lengths)
    generator = torch.Generator().manual_seed(T)
    q, k = (torch.randn(T, H, D, generator=generator) for _ in range(2))
    v, grad = (torch.randn(T, H, V, generator=generator) for _ in range(2))
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    return leaves, grad.to(dtype), torch.tensor([0, *accumulate(lengths)])


def output_and_gradients(attention, lengths, scale, dtype=torch.float32):
    leaves, grad, cu_seqlens = inputs(lengths, dtype)
    out = attention(*leaves, cu_seqlens, scale)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_as_defined(lengths, scale, attention=causal_attention):
    ours = output_and_gradients(attention, lengths, scale)
    defined = output_and_gradients(causal_reference, lengths, scale)
    for found, expected in zip(ours, defined, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=8), scale=st.floats(0.05, 2))
def test_it_is_the_reference_and_so_are_its_gradients(lengths, scale):
    assert_as_defined(lengths, scale)


@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 1], [64, 64], [128], [129], [700], [3, 640], [520, 700, 1, 2, 31, 33]]
)
def test_lengths_around_and_beyond_the_block_make_no_difference(lengths):
    assert_as_defined(lengths, D**-0.5)


@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=8), scale=st.floats(0.05, 2))
def test_what_a_gpu_takes_is_the_reference_and_so_are_its_gradients(lengths, scale):
    assert_as_defined(lengths, scale, fused_attention)


@pytest.mark.parametrize("lengths", [[40], [7, 30]])
def test_without_a_gradient_it_is_the_same(lengths):
    leaves, _, cu_seqlens = inputs(lengths)
    with torch.no_grad():
        out = causal_attention(*leaves, cu_seqlens, 0.3)
    torch.testing.assert_close(out, causal_reference(*leaves, cu_seqlens, 0.3).detach())


def test_huge_scores_do_not_overflow():
    (q, k, v), _, cu_seqlens = inputs([50, 9])
    out = causal_attention(q * 1e4, k * 1e4, v, cu_seqlens, 1.0)
    assert out.isfinite().all()


def test_in_bfloat16_it_stays_within_bfloat16_of_the_definition_in_float32():
    lengths = [150, 20, 7]
    low = output_and_gradients(causal_attention, lengths, D**-0.5, torch.bfloat16)
    high = output_and_gradients(causal_reference, lengths, D**-0.5)
    for found, expected in zip(low, high, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 0.02 * expected.norm()


@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=6))
def test_sequences_laid_end_to_end_do_not_see_each_other(lengths):
    leaves, _, cu_seqlens = inputs(lengths)
    whole = causal_attention(*leaves, cu_seqlens, 0.4)
    for start, end in pairwise(cu_seqlens.tolist()):
        alone = [leaf[start:end] for leaf in leaves]
        apart = causal_attention(*alone, torch.tensor([0, end - start]), 0.4)
        torch.testing.assert_close(whole[start:end], apart)


# From what the projections give, and the native twin of that


class Sizes(NamedTuple):
    """H heads of N+R for queries and keys and of V for values."""

    H: int
    N: int
    R: int
    V: int


SIZES = st.builds(
    Sizes, st.integers(1, 4), st.integers(1, 40), st.integers(0, 9).map(lambda i: 2 * i),
    st.integers(1, 40),
)  # fmt: skip
USUAL = Sizes(2, 32, 16, 32)


def projected(lengths, sizes, dtype=torch.bfloat16):
    """Random q, kv, k_rope (a slice, as its projection gives it), and the angles and borders."""
    T, (H, N, R, V) = sum(lengths), sizes
    generator = torch.Generator().manual_seed(T)
    q = torch.randn(T, H, N + R, generator=generator)
    kv = torch.randn(T, H, N + V, generator=generator)
    k_rope = torch.randn(T, R + 3, generator=generator)
    angles = torch.rand(T, R // 2, generator=generator) * 6.3
    leaves = [x.to(dtype) for x in (q, kv, k_rope)]
    return [*leaves[:2], leaves[2][:, 3:]], (angles.cos(), angles.sin(), borders(lengths))


def borders(lengths):
    return torch.tensor([0, *accumulate(lengths)])


def mixed_and_gradients(attention, leaves, others, scale):
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = attention(*leaves, *others, scale)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_close_in_bfloat16(lengths, sizes, scale, size=1.0):
    """Against float32 from the same BF16 inputs: 1% as a whole, and of each number as much as BF16
    rounds, or 1/16 of what is usual in its row and elsewhere."""
    leaves, others = projected(lengths, sizes)
    leaves = [x * size for x in leaves]
    ours = mixed_and_gradients(mla_attention, leaves, others, scale)
    exact = mixed_and_gradients(reference, [x.float() for x in leaves], others, scale)
    for found, expected in zip(ours, exact, strict=True):
        assert found.dtype == torch.bfloat16
        if not expected.numel():  # no rotary part
            continue
        error = found.float() - expected
        usual = expected.square().mean(-1, keepdim=True).sqrt()
        usual = usual + expected.square().mean().sqrt()
        assert error.norm() <= 0.01 * expected.norm() + 1e-4 * expected.numel() ** 0.5
        assert bool((error.abs() <= 2**-7 * expected.abs() + 2**-4 * usual + 1e-3).all())


needs_twin = pytest.mark.skipif(native("mla_attention") is None, reason="no native kernels")


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5), sizes=SIZES)
def test_projections_attend_as_defined_and_so_do_their_gradients(lengths, sizes):
    assert_close_in_bfloat16(lengths, sizes, (sizes.N + sizes.R) ** -0.5)


@pytest.mark.parametrize("scale", [0.02, 1.0])
@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [64], [65], [128, 128], [129, 1, 127], [2000]])
def test_lengths_around_the_blocks_of_the_twin_make_no_difference(lengths, scale):
    assert_close_in_bfloat16(lengths, USUAL, scale / USUAL.N**0.5)


@pytest.mark.parametrize("sizes", [Sizes(1, 1, 0, 1), Sizes(1, 128, 64, 128), Sizes(3, 15, 2, 65)])
def test_sizes_of_heads_make_no_difference(sizes):
    assert_close_in_bfloat16([140, 3], sizes, (sizes.N + sizes.R) ** -0.5)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5), sizes=SIZES)
def test_with_torch_projections_attend_as_defined(lengths, sizes):
    leaves, others = projected(lengths, sizes, torch.float32)
    ours = mixed_and_gradients(mla_attention, leaves, others, 0.3)
    exact = mixed_and_gradients(reference, leaves, others, 0.3)
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_twin
def test_the_twin_is_closer_to_the_definition_than_torch_in_bfloat16():
    leaves, others = projected([300, 40], USUAL)
    exact = mixed_and_gradients(reference, [x.float() for x in leaves], others, 0.15)
    ours = mixed_and_gradients(mla_attention, leaves, others, 0.15)
    with reference_only():
        torchs = mixed_and_gradients(mla_attention, leaves, others, 0.15)
    for near, far, expected in zip(ours, torchs, exact, strict=True):
        assert (near.float() - expected).norm() < (far.float() - expected).norm()


@needs_twin
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("at", [0, 20, 63, 64, 129, 200])
@torch.no_grad()
def test_nothing_of_a_later_key_reaches_a_query(bad, at):
    (q, kv, k_rope), others = projected([205], USUAL)
    expected = mla_attention(q, kv, k_rope, *others, 0.2)
    for spoiled in ((kv, slice(USUAL.N)), (kv, slice(USUAL.N, None)), (k_rope, slice(None))):
        x, part = spoiled
        kept = x.clone()
        x[at:, ..., part] = bad
        found = mla_attention(q, kv, k_rope, *others, 0.2)
        torch.testing.assert_close(found[:at], expected[:at], atol=0.02, rtol=0.01)
        if bad != bad:
            assert found[at:].isnan().all()
        x.copy_(kept)


@needs_twin
@torch.no_grad()
def test_huge_scores_do_not_overflow_in_the_twin():
    (q, kv, k_rope), others = projected([150, 9], USUAL)
    assert mla_attention(q * 1e4, kv, k_rope * 1e4, *others, 1.0).isfinite().all()


@needs_twin
@pytest.mark.parametrize("lengths", [[700], [3, 500, 1, 64], [90] * 5])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_threads_make_no_difference(threads, lengths, heads):
    leaves, others = projected(lengths, USUAL._replace(H=heads))
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(mixed_and_gradients(mla_attention, leaves, others, 0.2))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_twin
def test_what_stands_beside_a_sequence_makes_no_difference():
    leaves, (cos, sin, _) = projected([70, 130, 1], USUAL)
    whole = mixed_and_gradients(mla_attention, leaves, (cos, sin, borders([70, 130, 1])), 0.2)
    middle = slice(70, 200)
    leaves = [x.clone() for x in leaves]
    for x in leaves:
        x[:70], x[200:] = 5, -5
    again = mixed_and_gradients(mla_attention, leaves, (cos, sin, borders([70, 130, 1])), 0.2)
    assert all(torch.equal(a[middle], b[middle]) for a, b in zip(whole, again, strict=True))


@needs_twin
@pytest.mark.parametrize("length", [1, 17, 33, 170])
@torch.no_grad()
def test_the_start_of_a_sequence_gives_the_same_bits_alone(length):
    (q, kv, k_rope), (cos, sin, _) = projected([300], USUAL)
    whole = mla_attention(q, kv, k_rope, cos, sin, borders([300]), 0.4)
    start = [x[:length] for x in (q, kv, k_rope, cos, sin)]
    assert torch.equal(mla_attention(*start, borders([length]), 0.4), whole[:length])
