"""Cross-entropy of a head over a large vocabulary: -sum log softmax(hidden head^T)[label].

``reference`` is the definition. ``cross_entropy`` runs the head over chunks of rows and forms the
gradient on the way, so that the logits of a whole batch never exist: logits become probabilities
minus one at the label in place, and are multiplied away at once.

    T rows    D hidden_size    W vocab_size
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.batch import IGNORE
from abyssal.kernels.adamw import add, scaled
from abyssal.kernels.registry import Native
from abyssal.kernels.rows import is_bf16, twin


def reference(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of labels (T,) given hidden (T, D) and head (W, D)."""
    logits = (hidden @ head.T).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood in nats of labels (T,) given hidden (T, D) and head (W, D).

    Beside it that of each row (T,) float32, which carries no gradient. `rows` are scored at a time.
    """
    total, each = _ChunkedCrossEntropy.apply(hidden, head, labels, rows)
    return total, each


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        learning = any(ctx.needs_input_grad)
        each = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_head: Tensor | None = None
        size = min(size, len(hidden))
        # Reused by every chunk: to touch fresh memory would cost more than to compute in it.
        room = hidden.new_empty(size, len(head))
        score = _scorer(room)
        product, sums = torch.empty(0), torch.empty(0)
        total = hidden.new_zeros((), dtype=torch.float64)
        for start in range(0, len(hidden), size or 1):
            chunk = slice(start, start + size)
            rows = hidden[chunk]
            logits = torch.mm(rows, head.T, out=room[: len(rows)])  # (chunk, W)
            # Afterwards logits are their gradient.
            total += score(logits, labels[chunk], learning, each[chunk])
            if not learning:
                continue
            torch.mm(logits, head, out=grad_hidden[chunk])
            if grad_head is None:
                grad_head = torch.mm(logits.T, rows)  # (W, D)
                continue
            if not len(product):
                product = torch.empty_like(head)
                sums = torch.empty_like(head, dtype=torch.float32)
            torch.mm(logits.T, rows, out=product)
            grad_head = add(grad_head, product, sums)
        ctx.save_for_backward(
            grad_hidden, torch.zeros_like(head) if grad_head is None else grad_head
        )
        ctx.mark_non_differentiable(each)
        return total.float(), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad, scaled(grad_head, grad, grad_hidden.dtype), None, None


class _Scorer:
    """The loss of some rows of logits, which are turned into its gradient."""

    def __init__(self, room: Tensor):
        """`room` (chunk, W) is what logits will stand in."""
        self.room = room.new_empty(2, *room.shape, dtype=torch.float32)

    def __call__(self, logits: Tensor, labels: Tensor, learning: bool, each: Tensor) -> Tensor:
        word, ignored = labels[:, None].clamp(min=0), labels[:, None] == IGNORE
        logits32, probs = self.room[:, : len(logits)]  # (chunk, W)
        logits32.copy_(logits)
        torch.softmax(logits32, -1, out=probs)  # torch's log_softmax takes three times as long
        losses = _negative_log(logits32, probs, word).masked_fill_(ignored, 0)  # (chunk, 1)
        each.copy_(losses[:, 0])
        if learning:
            probs.scatter_add_(-1, word, probs.new_full((), -1.0).expand_as(word))
            logits.copy_(probs)
            if ignored.any():
                logits.masked_fill_(ignored, 0)
        return losses.sum()


class _NativeScorer:
    def __init__(self, room: Tensor, function: Native):
        self.function, self.threads = function, torch.get_num_threads()
        self.exps = np.empty((self.threads, room.shape[1]), np.float32)

    def __call__(self, logits: Tensor, labels: Tensor, learning: bool, each: Tensor) -> float:
        total = np.zeros(1)
        wrong = self.function(
            logits, labels.contiguous(), IGNORE, each, total, self.exps, *logits.shape,
            int(learning), is_bf16(logits), self.threads,
        )  # fmt: skip
        if wrong:
            raise IndexError(f"{wrong} labels lie outside the vocabulary of {logits.shape[1]}")
        return float(total[0])


def _scorer(room: Tensor) -> _Scorer | _NativeScorer:
    function = twin("cross_entropy", room)
    return _Scorer(room) if function is None else _NativeScorer(room, function)


def _negative_log(logits: Tensor, probs: Tensor, word: Tensor) -> Tensor:
    """-log of each row's probability of `word` (rows, 1), also where it underflows."""
    nll = probs.gather(-1, word).log_().neg_()
    rare = (nll > 60).nonzero()[:, 0]
    if len(rare):
        few = logits[rare]
        nll[rare] = few.logsumexp(-1, keepdim=True) - few.gather(-1, word[rare])
    return nll
