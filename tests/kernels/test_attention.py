"""Attention in dense blocks is attention by definition, whatever the lengths of the sequences."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.attention import causal_attention, reference

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


def assert_as_defined(lengths, scale):
    ours = output_and_gradients(causal_attention, lengths, scale)
    defined = output_and_gradients(reference, lengths, scale)
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


@pytest.mark.parametrize("lengths", [[40], [7, 30]])
def test_without_a_gradient_it_is_the_same(lengths):
    leaves, _, cu_seqlens = inputs(lengths)
    with torch.no_grad():
        out = causal_attention(*leaves, cu_seqlens, 0.3)
    torch.testing.assert_close(out, reference(*leaves, cu_seqlens, 0.3).detach())


def test_huge_scores_do_not_overflow():
    (q, k, v), _, cu_seqlens = inputs([50, 9])
    out = causal_attention(q * 1e4, k * 1e4, v, cu_seqlens, 1.0)
    assert out.isfinite().all()


def test_in_bfloat16_it_stays_within_bfloat16_of_the_definition_in_float32():
    lengths = [150, 20, 7]
    low = output_and_gradients(causal_attention, lengths, D**-0.5, torch.bfloat16)
    high = output_and_gradients(reference, lengths, D**-0.5)
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
