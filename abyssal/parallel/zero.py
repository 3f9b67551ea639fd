"""Who keeps the optimizer's state of which parameter, and how tensors travel in few messages.

    zero = 0    every rank keeps all, and takes the same steps
    zero = 1    a parameter's master and moments live with one rank, its owner: gradients are added
                up there, the owner steps, everybody gets the new working copy

ZeRO stage 1 (Rajbhandari et al., arXiv 1910.02054), by whole parameters; DeepSeek-V3 (arXiv
2412.19437), section 3.2, trains so over its data-parallel ranks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from abyssal.parallel.ranks import Ranks

LARGE_BYTES = 1 << 22  # of a tensor that travels as it stands
BUCKET_BYTES = 1 << 25  # of small ones that are copied together and travel as one


def owners(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """The rank that keeps each parameter: the largest first, each to who has least so far.

    `sizes` are bytes of state. No rank has more than the others by more than one parameter.
    """
    kept = [0] * world
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = kept.index(min(kept))
        kept[found[name]] += sizes[name]
    return {name: found[name] for name in sizes}


def sum_all(ranks: Ranks, tensors: Sequence[Tensor], owner: int | None = None) -> None:
    """Add up float32 tensors over all ranks in place: on all of them, or on the owner alone."""
    _in_buckets(tensors, lambda flat: ranks.sum(flat, owner))


def copy_all(ranks: Ranks, tensors: Sequence[Tensor], owner: int) -> None:
    """Overwrite tensors with those of their owner."""
    _in_buckets(tensors, lambda flat: ranks.copy(flat, owner))


@torch.no_grad()
def _in_buckets(tensors: Sequence[Tensor], travel: Callable[[Tensor], None]) -> None:
    for bucket in _buckets(tensors):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            travel(bucket[0])
            continue
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        travel(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Large tensors alone; small ones of one precision together, until a bucket is full."""
    bucket: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        if tensor.nbytes >= LARGE_BYTES:
            yield [tensor]
            continue
        size = sum(one.nbytes for one in bucket) + tensor.nbytes
        if bucket and (size > BUCKET_BYTES or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
