"""What travels arrives: every tensor once and whole, in few messages of one precision each."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.parallel import zero

DTYPES = (torch.float32, torch.bfloat16)


class Doubling:
    """Ranks of which another one always says the same."""

    def __init__(self):
        self.messages = []

    def sum(self, tensor, owner=None):
        """Add the other's."""
        assert tensor.is_contiguous()
        self.messages.append(tensor.nbytes)
        tensor.mul_(2)


@st.composite
def tensors(draw):
    """Of some numbers each, in either precision, some of them views that skip numbers."""
    found = []
    for _ in range(draw(st.integers(0, 12))):
        whole = torch.arange(1.0, 2 * draw(st.integers(1, 40)) + 1)
        part = whole.to(draw(st.sampled_from(DTYPES)))
        found.append(part[::2] if draw(st.booleans()) else part)
    return found


@given(tensors(), st.integers(8, 200), st.integers(8, 400))
def test_every_tensor_is_summed_once_whatever_its_size(given_tensors, large, bucket):
    before = [tensor.clone() for tensor in given_tensors]
    ranks, kept = Doubling(), (zero.LARGE_BYTES, zero.BUCKET_BYTES)
    zero.LARGE_BYTES, zero.BUCKET_BYTES = large, bucket
    try:
        zero.sum_all(ranks, given_tensors)
    finally:
        zero.LARGE_BYTES, zero.BUCKET_BYTES = kept
    for tensor, old in zip(given_tensors, before, strict=True):
        assert torch.equal(tensor, 2 * old)
    assert sum(ranks.messages) == sum(tensor.nbytes for tensor in given_tensors)
    alone = sum(tensor.nbytes >= large for tensor in given_tensors)
    assert len(ranks.messages) <= len(given_tensors)
    assert all(size <= max(bucket, large) for size in sorted(ranks.messages)[: -alone or None])
