"""What training minimizes: next token, tokens further ahead, and balance within each sequence.

    L = L_main + lambda/D sum_k L_MTP^k + L_Bal        eq. 17-20, 24-25

DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2 and 2.2. The cross-entropy runs the head in chunks of
rows and forms the gradient on the way, so that the logits of a whole batch never exist.

    T tokens    D hidden_size    W vocab_size    E experts    K experts per token    N sequences
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.batch import IGNORE, Batch
from abyssal.model.moe import Routing
from abyssal.model.transformer import Output

LOGITS = 1 << 22  # formed at a time: 16 MB in float32


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

    Where many rows are ignored, the others are gathered and filled up to whole chunks: a matrix
    library prepares a kernel for every new row count.
    """
    scored = (labels != IGNORE).nonzero()[:, 0]
    chunk = _rows_at_a_time(head)
    rows = (len(scored) + chunk - 1) // chunk * chunk
    if rows < len(labels):
        ignored = (labels == IGNORE).nonzero()[: rows - len(scored), 0]
        chosen = torch.cat([scored, ignored])
        hidden, labels = hidden[chosen], labels[chosen]
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head, labels)
    return loss


def _negative_log(logits: Tensor, probs: Tensor, word: Tensor) -> Tensor:
    """-log of each row's probability of `word` (rows, 1), also where it underflows."""
    nll = probs.gather(-1, word).log_().neg_()
    rare = (nll > 60).nonzero()[:, 0]
    if len(rare):
        few = logits[rare]
        nll[rare] = few.logsumexp(-1, keepdim=True) - few.gather(-1, word[rare])
    return nll


def _rows_at_a_time(head: Tensor) -> int:
    return max(32, LOGITS // len(head))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        learning = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        total = hidden.new_zeros((), dtype=torch.float32)
        size = _rows_at_a_time(head)
        # Reused by every chunk: to touch fresh memory would cost more than to compute in it.
        room = hidden.new_empty(2, size, len(head), dtype=torch.float32)
        low_room = hidden.new_empty(size, len(head))
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            rows, word = hidden[chunk], labels[chunk, None].clamp(min=0)
            ignored = labels[chunk, None] == IGNORE
            (logits, probs), low = room[:, : len(rows)], low_room[: len(rows)]  # (chunk, W)
            logits.copy_(torch.mm(rows, head.T, out=low))
            torch.softmax(logits, -1, out=probs)  # torch's log_softmax takes three times as long
            total += _negative_log(logits, probs, word).masked_fill_(ignored, 0).sum()
            if not learning:
                continue
            probs.scatter_add_(-1, word, probs.new_full((), -1.0).expand_as(word))
            low.copy_(probs)
            if ignored.any():
                low.masked_fill_(ignored, 0)
            torch.mm(low, head, out=grad_hidden[chunk])
            grad_head += low.T @ rows
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad, (grad_head * grad).to(grad_hidden.dtype), None


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
