"""What training minimizes: next token, tokens further ahead, and balance within each sequence.

    L = L_main + lambda/D sum_k L_MTP^k + L_Bal        eq. 17-20, 24-25

DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2 and 2.2. The cross-entropy runs the head in chunks of
rows (`kernels/cross_entropy.py`), so that the logits of a whole batch never exist.

    T tokens    D hidden_size    W vocab_size    E experts    K experts per token    N sequences
"""

from typing import NamedTuple

import torch
from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.kernels import cross_entropy as kernel
from abyssal.model.moe import Routing
from abyssal.model.transformer import Output

LOGITS_BYTES = 1 << 25  # of logits, formed at a time
ROUND = 512  # rows that gathered ones are filled up to a multiple of


class Losses(NamedTuple):
    """Sums over the scored tokens of a batch (in nats), and the balance term."""

    main: Tensor
    mtp: Tensor  # averaged over depths, not yet weighted by lambda
    balance: Tensor  # sum over MoE blocks of the mean over sequences, not yet weighted by alpha


def losses(output: Output, head: Tensor, batch: Batch, *, top_k: int, balance: bool) -> Losses:
    """Score one pass; `head` is (W, D), and each MTP module's rows predict labels its depth
    further.
    """
    labels = batch.labels
    assert labels is not None
    zero = output.hidden.new_zeros((), dtype=torch.float32)
    main = cross_entropy(output.hidden, head, labels)
    ahead = zero
    for depth, hidden in enumerate(output.mtp_hidden, 1):
        further = labels_ahead(labels, batch.cu_seqlens, depth)
        ahead = ahead + cross_entropy(hidden, head, further) / len(output.mtp_hidden)
    routings = output.routings if balance else ()
    term = zero
    for routing in routings:
        term = term + sequence_balance(routing, batch.cu_seqlens, top_k)
    return Losses(main, ahead, term)


def labels_ahead(labels: Tensor, cu_seqlens: Tensor, depth: int) -> Tensor:
    """Labels (T,) moved `depth` rows up within each sequence; the rows left over are ignored."""
    moved = labels.roll(-depth)
    for back in range(1, depth + 1):
        moved[(cu_seqlens[1:] - back).clamp(min=0)] = IGNORE
    return moved


def cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of labels (T,) given hidden (T, D) and head (W, D).

    Where many rows are ignored, the others are gathered and filled up to a round number: a matrix
    library prepares a kernel for every new one.
    """
    scored = (labels != IGNORE).nonzero()[:, 0]
    chunk = _rows_at_a_time(head)
    step = min(chunk, ROUND)
    rows = (len(scored) + step - 1) // step * step
    if rows < len(labels):
        ignored = (labels == IGNORE).nonzero()[: rows - len(scored), 0]
        chosen = torch.cat([scored, ignored])
        hidden, labels = hidden[chosen], labels[chosen]
    return kernel.cross_entropy(hidden, head, labels, chunk)


def _rows_at_a_time(head: Tensor) -> int:
    return max(32, LOGITS_BYTES // (len(head) * head.element_size()))


def sequence_balance(routing: Routing, cu_seqlens: Tensor, top_k: int) -> Tensor:
    """sum_i f_i P_i of each sequence, averaged over sequences (eq. 17-20); 1 when balanced.

    As printed, f counts the raw affinities' own top K, without the bias, and carries no gradient.
    """
    affinity = routing.affinity  # (T, E)
    experts, lengths = affinity.shape[-1], cu_seqlens.diff().to(affinity.device)
    sequence = torch.arange(len(lengths), device=affinity.device).repeat_interleave(lengths)
    chosen = torch.zeros_like(affinity).scatter_(-1, affinity.detach().topk(top_k).indices, 1.0)
    share = affinity / affinity.sum(-1, keepdim=True)  # (T, E)  eq. 19
    zeros = affinity.new_zeros(len(lengths), experts)
    f = zeros.index_add(0, sequence, chosen) * (experts / top_k) / lengths[:, None]  # eq. 18
    P = zeros.index_add(0, sequence, share) / lengths[:, None]  # (N, E)  eq. 20
    return (f * P).sum(-1).mean()
