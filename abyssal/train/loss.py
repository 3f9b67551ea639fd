"""What training minimizes: next token, tokens further ahead, and balance within each sequence.

    L = L_main + lambda/D sum_k L_MTP^k + L_Bal        eq. 17-20, 24-25

DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2 and 2.2. The cross-entropy runs the head in chunks of
rows (`kernels/cross_entropy.py`), so that the logits of a whole batch never exist.

    T tokens    D hidden_size    W vocab_size    E experts    K experts per token    N sequences
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.kernels import cross_entropy as kernel
from abyssal.model.moe import Routing
from abyssal.model.transformer import Output
from abyssal.parallel.ranks import Ranks
from abyssal.train.logprobs import logprobs

LOGITS_BYTES = 1 << 25  # of logits, formed at a time
LOGITS_BYTES_GPU = 1 << 28  # where only the number of calls matters
ROUND = 512  # rows that gathered ones are filled up to a multiple of


class Losses(NamedTuple):
    """Sums over what a batch has to score (tokens, pairs), the balance term, and figures beside."""

    main: Tensor
    mtp: Tensor  # averaged over depths, not yet weighted by lambda
    balance: Tensor  # sum over MoE blocks of the mean over sequences, not yet weighted by alpha
    # Name -> a sum and what it is to be divided by, once those of a step's batches are added up.
    figures: Mapping[str, tuple[float, float]] = {}


def losses(
    output: Output,
    head: Tensor,
    batch: Batch,
    *,
    top_k: int,
    balance: bool,
    sources: Mapping[str, Tensor] | None = None,
) -> Losses:
    """Score one pass; `head` is (W, D), and each MTP module's rows predict labels its depth
    further.

    `sources` says which labels (T,) bool each source brought; their mean losses become figures.
    """
    labels = batch.labels
    assert labels is not None
    main, each = by_row(output.hidden, head, labels)
    ahead = output.hidden.new_zeros((), dtype=torch.float32)
    for depth, hidden in enumerate(output.mtp_hidden, 1):
        further = labels_ahead(labels, batch.cu_seqlens, depth)
        ahead = ahead + cross_entropy(hidden, head, further) / len(output.mtp_hidden)
    figures = {}
    for name, brought in (sources or {}).items():
        scored = brought & (labels != IGNORE)
        figures[f"loss/{name}"] = (float(each[scored].double().sum()), float(scored.sum()))
    return Losses(main, ahead, balance_term(output, batch, top_k=top_k, wanted=balance), figures)


def mean_losses(total: Tensor, figures: Mapping[str, Tensor], ranks: Ranks) -> Losses:
    """What all ranks found, added up in their order: main, mtp and balance (3,), and figures (2,).

    A figure that no row counts for is left out.
    """
    said = [total.tolist(), {name: figure.tolist() for name, figure in figures.items()}]
    whole, sums = torch.zeros_like(total), dict[str, Tensor]()
    for part, others in ranks.everyone(said):
        whole += torch.tensor(part, dtype=total.dtype)
        for name, figure in others.items():
            sums[name] = sums.get(name, 0) + torch.tensor(figure, dtype=total.dtype)
    pairs = {name: (figure[0].item(), figure[1].item()) for name, figure in sums.items()}
    counted = {name: pair for name, pair in pairs.items() if pair[1]}
    return Losses(whole[0], whole[1], whole[2], counted)


def balance_term(output: Output, batch: Batch, *, top_k: int, wanted: bool) -> Tensor:
    """The sequence balance of every MoE block, summed; 0 where it is not wanted."""
    term = output.hidden.new_zeros((), dtype=torch.float32)
    for routing in output.routings if wanted else ():
        term = term + sequence_balance(routing, batch.cu_seqlens, top_k)
    return term


def labels_ahead(labels: Tensor, cu_seqlens: Tensor, depth: int) -> Tensor:
    """Labels (T,) moved `depth` rows up within each sequence; the rows left over are ignored."""
    moved = labels.roll(-depth)
    for back in range(1, depth + 1):
        moved[(cu_seqlens[1:] - back).clamp(min=0)] = IGNORE
    return moved


def cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of labels (T,) given hidden (T, D) and head (W, D)."""
    return by_row(hidden, head, labels)[0]


def by_row(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and beside it that of each row (T,), which carries no gradient.

    Where many rows are ignored, the others are gathered and filled up to a round number: a matrix
    library prepares a kernel for every new one.
    """
    scored = (labels != IGNORE).nonzero()[:, 0]
    chunk = _rows_at_a_time(head)
    step = min(chunk, ROUND)
    rows = (len(scored) + step - 1) // step * step
    if rows >= len(labels):
        return kernel.cross_entropy(hidden, head, labels, chunk)
    ignored = (labels == IGNORE).nonzero()[: rows - len(scored), 0]
    chosen = torch.cat([scored, ignored])
    total, few = kernel.cross_entropy(hidden[chosen], head, labels[chosen], chunk)
    return total, few.new_zeros(len(labels)).index_copy_(0, chosen, few)


def token_logprobs(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """log p of labels (T,) given hidden (T, D) and head (W, D) -> (T,) float32; 0 where ignored.

    With gradients: for a loss in which every row's has a weight of its own, found only after the
    pass (preferences, policy gradients).
    """
    scored = (labels != IGNORE).nonzero()[:, 0]
    few = logprobs(hidden[scored], head, labels[scored])
    return hidden.new_zeros(len(labels), dtype=torch.float32).index_add(0, scored, few)


def _rows_at_a_time(head: Tensor) -> int:
    most = LOGITS_BYTES if head.device.type == "cpu" else LOGITS_BYTES_GPU
    return max(32, most // (len(head) * head.element_size()))


def sequence_balance(routing: Routing, cu_seqlens: Tensor, top_k: int) -> Tensor:
    """sum_i f_i P_i of each sequence, averaged over sequences (eq. 17-20); 1 when balanced.

    As printed, f counts the raw affinities' own top K, without the bias, and carries no gradient.
    """
    affinity = routing.affinity  # (T, E)
    experts, lengths = affinity.shape[-1], cu_seqlens.diff().to(affinity.device)
    chosen = torch.zeros_like(affinity).scatter_(-1, affinity.detach().topk(top_k).indices, 1.0)
    share = affinity / affinity.sum(-1, keepdim=True)  # (T, E)  eq. 19
    f = sums_by_sequence(chosen, lengths) * (experts / top_k) / lengths[:, None]  # eq. 18
    P = sums_by_sequence(share, lengths) / lengths[:, None]  # (N, E)  eq. 20
    return (f * P).sum(-1).mean()


def sums_by_sequence(x: Tensor, lengths: Tensor) -> Tensor:
    """Rows of x (T, E) added up within sequences of `lengths` (N,) -> (N, E)."""
    sequence = torch.arange(len(lengths), device=x.device)
    owner = sequence.repeat_interleave(lengths, output_size=len(x))  # (T,)
    if x.device.type == "cpu":
        return x.new_zeros(len(lengths), x.shape[1]).index_add(0, owner, x)
    return membership_sums(x, owner, sequence)


def membership_sums(x: Tensor, owner: Tensor, sequence: Tensor) -> Tensor:
    """The same as a product: index_add on a GPU adds in another order each time."""
    return (owner == sequence[:, None]).to(x.dtype) @ x
