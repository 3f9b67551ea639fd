"""Divergences by hand, by their laws, and beside TRL's on the same tensors."""

import math

import pytest
import torch

from abyssal.train import divergence as module
from abyssal.train import logprobs
from abyssal.train.divergence import Guide, Kind, divergence, reference

KINDS = [Kind("forward"), Kind("reverse"), Kind("jsd", 0.5), Kind("jsd", 0.1), Kind("jsd", 0.8)]


def logits(seed: int, rows: int = 7, words: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's, with a gradient, and the teacher's."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, words, generator=generator) * 2
    return student.requires_grad_(), teacher


def tensors(rows: int, words: int = 50) -> tuple[torch.Tensor, torch.Tensor, Guide]:
    """Hidden and head of a student of 8 dimensions, and of a teacher of 12."""
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 8, generator=generator).requires_grad_()
    head = torch.randn(words, 8, generator=generator).requires_grad_()
    theirs = torch.randn(rows, 12, generator=generator).requires_grad_()
    their_head = torch.randn(words, 12, generator=generator).requires_grad_()
    return hidden, head, Guide(theirs, their_head)


def test_two_words_by_hand():
    """P = (3/4, 1/4), Q = (1/2, 1/2): with beta = 1/2, M = (5/8, 3/8)."""
    log = math.log
    teacher, student = torch.tensor([[log(3.0), 0.0]]), torch.tensor([[0.7, 0.7]])
    forward = 0.75 * log(1.5) + 0.25 * log(0.5)
    reverse = 0.5 * log(2 / 3) + 0.5 * log(2)
    to_middle = 0.75 * log(6 / 5) + 0.25 * log(2 / 3), 0.5 * log(4 / 5) + 0.5 * log(4 / 3)
    known = {"forward": forward, "reverse": reverse, "jsd": sum(to_middle) / 2}
    for name, expected in known.items():
        found = reference(student, teacher, Kind(name))
        torch.testing.assert_close(found, torch.tensor([expected]))
    # beta is the teacher's share: M = (9/16, 7/16)
    known = 0.25 * (0.75 * log(4 / 3) + 0.25 * log(4 / 7)) + 0.75 * (
        0.5 * log(8 / 9) + 0.5 * log(8 / 7)
    )
    found = reference(student, teacher, Kind("jsd", 0.25))
    torch.testing.assert_close(found, torch.tensor([known]))
    # twice as hot, P is in the odds of the root of 3
    p = math.sqrt(3) / (1 + math.sqrt(3))
    found = reference(student, teacher, Kind("forward", temperature=2.0))
    expected = p * log(2 * p) + (1 - p) * log(2 * (1 - p))
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_the_gradient_of_forward_is_the_students_surplus():
    hidden, head, guide = tensors(5)
    total, _ = divergence(hidden, head, guide, Kind("forward"))
    (grad,) = torch.autograd.grad(total, hidden)
    surplus = (hidden @ head.T).softmax(-1) - (guide.hidden @ guide.head.T).softmax(-1)
    torch.testing.assert_close(grad, surplus @ head, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_trl_has_the_same_loss_and_gradient(kind, temperature):
    trl = pytest.importorskip("trl.experimental.gkd")
    kind = kind._replace(temperature=temperature)
    beta = {"forward": 0, "reverse": 1, "jsd": kind.beta}[kind.name]
    student, teacher = logits(3)
    labels = torch.tensor([4, -100, 2, 1, -100, 0, 3])
    theirs = trl.GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], labels[None], beta=beta, temperature=temperature
    )
    scored = labels != -100
    total = reference(student[scored], teacher[scored], kind).sum()
    torch.testing.assert_close(total / scored.sum(), theirs)
    mine, others = (torch.autograd.grad(loss, student)[0] for loss in (total, theirs))
    torch.testing.assert_close(mine / scored.sum(), others)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [0, 1, 33, 100])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_chunks_are_the_whole_and_their_gradients_the_definitions(
    monkeypatch, kind, rows, temperature
):
    monkeypatch.setattr(logprobs, "LOGITS_BYTES", 4 * 50 * 32)
    kind = kind._replace(temperature=temperature)
    hidden, head, guide = tensors(rows)
    assert module.rows_at_a_time(head) == 32
    total, each = divergence(hidden, head, guide, kind)
    expected = reference(hidden @ head.T, guide.hidden @ guide.head.T, kind)
    torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total, expected.sum())
    assert not each.requires_grad
    mine = torch.autograd.grad(total * 3, (hidden, head))
    others = torch.autograd.grad(expected.sum() * 3, (hidden, head))
    for found, known in zip(mine, others, strict=True):
        torch.testing.assert_close(found, known, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_flow_to_the_student_only(kind):
    hidden, head, guide = tensors(6)
    divergence(hidden, head, guide, kind)[0].backward()
    assert hidden.grad.any()
    assert head.grad.any()
    assert guide.hidden.grad is None
    assert guide.head.grad is None


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_without_gradients_it_is_the_same(kind):
    hidden, head, guide = tensors(6)
    with_gradient = divergence(hidden, head, guide, kind)[1]
    with torch.no_grad():
        torch.testing.assert_close(divergence(hidden, head, guide, kind)[1], with_gradient)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_who_is_the_teacher_has_nothing_to_learn(kind):
    hidden, head, _ = tensors(9)
    same = Guide(hidden.detach().clone(), head.detach().clone())
    total, each = divergence(hidden, head, same, kind)
    total.backward()
    bound = 0 if kind.name != "jsd" else 1e-5  # log M is log P up to rounding
    for found in (total, each, hidden.grad, head.grad):
        assert found.abs().max() <= bound


def test_far_apart_everything_stays_finite():
    """Words that one of the two would never write."""
    student = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    teacher = torch.tensor([[-300.0, 0.0, 300.0]])
    for kind in KINDS:
        eye = torch.eye(3, requires_grad=True)
        total, _ = divergence(student, eye, Guide(teacher, torch.eye(3)), kind)
        (grad,) = torch.autograd.grad(total, student)
        assert total.isfinite()
        assert grad.isfinite().all()
    at_most = math.log(2)
    assert reference(student, teacher, Kind("jsd", 0.5)).item() == pytest.approx(at_most)


def test_at_its_ends_jsd_is_forward_and_reverse():
    """Divided by the share that vanishes; the closer the two, the sooner."""
    student, teacher = (x.detach() / 4 for x in logits(4))
    small = 1e-3
    for name, beta in (("forward", small), ("reverse", 1 - small)):
        near = reference(student, teacher, Kind("jsd", beta)) / small
        expected = reference(student, teacher, Kind(name))
        torch.testing.assert_close(near, expected, atol=1e-3, rtol=5e-3)


def test_a_divergence_is_positive_and_jsd_of_a_half_symmetric():
    student, teacher = (x.detach() for x in logits(5, rows=40))
    for kind in KINDS:
        assert (reference(student, teacher, kind) > 0).all()
    there = reference(student, teacher, Kind("jsd", 0.5))
    torch.testing.assert_close(there, reference(teacher, student, Kind("jsd", 0.5)))
    forward = reference(student, teacher, Kind("forward"))
    torch.testing.assert_close(forward, reference(teacher, student, Kind("reverse")))
