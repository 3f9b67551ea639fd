"""How far a student's next-token distribution is from a teacher's, with the student's gradient.

P is the teacher's softmax, Q the student's, both of logits / temperature:

    forward   KL(P || Q)
    reverse   KL(Q || P)
    jsd       beta KL(P || M) + (1 - beta) KL(Q || M),    M = beta P + (1 - beta) Q

The last is the generalized Jensen-Shannon divergence, equation 1 of Agarwal et al. (arXiv
2306.13649); divided by beta it becomes forward as beta goes to 0, by 1 - beta reverse at 1.
``reference`` is the definition. ``divergence`` runs both heads over chunks of rows and forms the
gradient on the way, so that the logits of a whole batch never exist, of neither model:

    dKL(P || Q)/dz = Q - P        else  dD/dz = Q (g - sum Q g),   z = logits / temperature
    g = log Q - log P (reverse),  (1 - beta) (log Q - log M) (jsd)

    T rows    W vocab_size    D hidden_size of the student    C of the teacher
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from abyssal.train.logprobs import rows_at_a_time

Name = Literal["forward", "reverse", "jsd"]


class Kind(NamedTuple):
    """Which divergence, and of how sharp distributions."""

    name: Name = "forward"
    beta: float = 0.5  # of jsd: the teacher's share of the mixture
    temperature: float = 1.0


class Guide(NamedTuple):
    """What the teacher makes of the same rows."""

    hidden: Tensor  # (T, C)
    head: Tensor  # (W, C)


def reference(student: Tensor, teacher: Tensor, kind: Kind) -> Tensor:
    """Logits (T, W) of both -> the divergence of each row (T,) in nats, float32."""
    log_q = F.log_softmax(student.float() / kind.temperature, -1)
    log_p = F.log_softmax(teacher.float() / kind.temperature, -1)
    if kind.name == "forward":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if kind.name == "reverse":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    log_m = _mixture(log_p, log_q, kind.beta)
    teachers = (log_p.exp() * (log_p - log_m)).sum(-1)
    students = (log_q.exp() * (log_q - log_m)).sum(-1)
    return kind.beta * teachers + (1 - kind.beta) * students


def divergence(hidden: Tensor, head: Tensor, guide: Guide, kind: Kind) -> tuple[Tensor, Tensor]:
    """hidden (T, D), head (W, D) of the student -> the sum over rows, with its gradient.

    Beside it the divergence of each row (T,) float32, which carries none. Nothing flows to the
    teacher.
    """
    args = (hidden, head, guide.hidden, guide.head, kind)
    total, each = _ChunkedDivergence.apply(*args)  # type: ignore[no-untyped-call]
    return total, each


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, theirs: Tensor, their_head: Tensor, kind: Kind
    ) -> tuple[Tensor, Tensor]:
        learning = any(ctx.needs_input_grad)
        size = rows_at_a_time(head)
        each = hidden.new_empty(len(hidden), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            rows = hidden[chunk]
            student, teacher = rows @ head.T, theirs[chunk] @ their_head.T  # (chunk, W)
            if not learning:
                each[chunk] = reference(student, teacher, kind)
                continue
            each[chunk], grad = _with_gradient(student, teacher, kind)
            grad = grad.to(hidden.dtype)
            torch.mm(grad, head, out=grad_hidden[chunk])
            grad_head += grad.T @ rows
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.mark_non_differentiable(each)
        return each.double().sum().float(), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad, (grad_head * grad).to(grad_hidden.dtype), None, None, None


def _with_gradient(student: Tensor, teacher: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Logits (chunk, W) -> the divergence of each row, and its gradient in the student's logits."""
    log_q = F.log_softmax(student.float() / kind.temperature, -1)
    log_p = F.log_softmax(teacher.float() / kind.temperature, -1)
    q, p = log_q.exp(), log_p.exp()
    if kind.name == "forward":
        return (p * (log_p - log_q)).sum(-1), (q - p) / kind.temperature
    if kind.name == "reverse":
        slope = log_q - log_p
        found = (q * slope).sum(-1)
    else:
        log_m = _mixture(log_p, log_q, kind.beta)
        slope = (1 - kind.beta) * (log_q - log_m)
        found = kind.beta * (p * (log_p - log_m)).sum(-1) + (q * slope).sum(-1)
    return found, q * (slope - (q * slope).sum(-1, keepdim=True)) / kind.temperature


def _mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log (beta P + (1 - beta) Q)."""
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
