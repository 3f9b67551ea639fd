"""Log-probabilities of given tokens, with gradient, under a head whose logits never exist together.

    logprob_t = z_t[label_t] - log sum exp z_t,    z_t = hidden_t head^T / temperature

The forward keeps one number a row; the backward computes each chunk of logits again. Beside
`kernels/cross_entropy.py`, which sums all rows with one weight, here each row has a gradient of its
own, as preferences and reinforcement need.

    T rows    D hidden_size    W vocab_size
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_BYTES = 1 << 24  # of float32 logits, formed at a time
ROUND = 512  # rows that a call is filled up to a multiple of


def logprobs(hidden: Tensor, head: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """hidden (T, D), head (W, D), labels (T,) -> the log-probability of each label (T,) float32.

    Rows are filled up to a round number: a matrix library prepares a kernel for every new one, and
    keeps some 15 MB for each.
    """
    missing = -len(hidden) % ROUND
    filled = F.pad(hidden, (0, 0, 0, missing)), head, F.pad(labels, (0, missing))
    found: Tensor = _ChunkedLogprobs.apply(*filled, temperature)  # type: ignore[no-untyped-call]
    return found[: len(hidden)]


def rows_at_a_time(head: Tensor) -> int:
    """Rows of logits that fit LOGITS_BYTES, a round number where there are many."""
    rows = max(32, LOGITS_BYTES // (4 * len(head)))
    return rows // ROUND * ROUND or rows


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, temperature: float
    ) -> Tensor:
        size = rows_at_a_time(head)
        logprob, lse = (hidden.new_empty(len(hidden), dtype=torch.float32) for _ in "ab")
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            logits = (hidden[chunk] @ head.T).float() / temperature  # (chunk, W)
            total = logits.logsumexp(-1)
            lse[chunk] = total
            logprob[chunk] = logits.gather(-1, labels[chunk, None])[:, 0] - total
        ctx.save_for_backward(hidden, head, labels, lse)
        ctx.temperature = temperature
        return logprob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, head, labels, lse = ctx.saved_tensors
        size = rows_at_a_time(head)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            rows, given = hidden[chunk], grad[chunk, None] / ctx.temperature
            logits = (rows @ head.T).float() / ctx.temperature
            wrong = (logits - lse[chunk, None]).exp_().mul_(-given)
            wrong.scatter_add_(-1, labels[chunk, None], given)
            wrong = wrong.to(hidden.dtype)
            torch.mm(wrong, head, out=grad_hidden[chunk])
            grad_head += wrong.T @ rows
        return grad_hidden, grad_head.to(head.dtype), None, None
