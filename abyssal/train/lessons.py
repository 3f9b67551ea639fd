"""Answers as a policy learns from them: laid end to end, scored by it, its loss differentiated.

N answers of a mini-batch    T tokens of these    L MoE blocks    E experts
"""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from abyssal.batch import Batch
from abyssal.model.moe import Routing
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import balance, grpo
from abyssal.train.exercises import Draw
from abyssal.train.logprobs import logprobs
from abyssal.train.machine import Machine
from abyssal.train.optim import Optimizer
from abyssal.train.reinforce import GRPO
from abyssal.train.rollouts import Answer, Gap, gap

ROUND = 1024  # tokens that a batch is filled up to a multiple of


class Lesson(NamedTuple):
    """An answer to be learned from."""

    answer: Answer
    advantage: float
    counts: bool  # False: it was cut off, and such answers are masked


class Learned(NamedTuple):
    """What came of some answers."""

    loss: float
    kl: float | None
    clipped: float
    grad_norm: float
    gap: Gap
    load: Tensor  # (L, E)
    tokens: int  # read in forward and backward passes
    updates: int  # optimizer steps taken


NOTHING = Learned(
    0.0, None, 0.0, 0.0, Gap(0.0, 0.0, 0.0), torch.zeros(0, 0, dtype=torch.int64), 0, 0
)


class Learner:
    """A policy, its reference, and how answers move it."""

    def __init__(self, run: GRPO, model: DeepSeekV3, reference: DeepSeekV3 | None, to: Machine):
        self.run, self.model, self.reference, self.device = run, model, reference, to.device

    def accumulate(
        self, lessons: Sequence[Lesson], old: Sequence[Tensor | None], optimizer: Optimizer
    ) -> Learned:
        """Differentiate the loss of one mini-batch, its gradients collected but not yet clipped.

        `old` are log-probabilities before the first step of a draw, or None where this is it.
        """
        run = self.run
        lengths = torch.tensor([len(lesson.answer.tokens) for lesson in lessons])
        counted = torch.tensor([lesson.counts for lesson in lessons])
        weights = grpo.token_weights(lengths, counted, run.objective.mean, run.max_tokens)
        by_lesson = weights.split(lengths.tolist())
        loss = kl = clipped = 0.0
        load = NOTHING.load
        ours: list[Tensor] = []
        engines: list[Tensor] = []
        for part in micro_batches(lessons, run.micro_tokens):
            some = [lessons[i] for i in part]
            weight = torch.cat([by_lesson[i] for i in part]).to(self.device)
            taken, routings = self._taken([one.answer for one in some], [old[i] for i in part])
            gains = torch.tensor([one.advantage for one in some]).to(weight)
            terms = grpo.loss(taken, gains, weight, run.objective)
            terms.loss.backward()
            optimizer.collect()
            share = len(weight) / len(weights)
            loss += terms.loss.item()
            kl, clipped = kl + terms.kl.item() * share, clipped + terms.clipped.item() * share
            if routings:
                counts = balance.expert_load(routings)
                load = load + counts if len(load) else counts
            assert taken.drawn is not None
            ours.append(taken.old)
            engines.append(taken.drawn)
        apart = gap(torch.cat(ours), torch.cat(engines))
        read = sum(len(one.answer.prompt) + len(one.answer.tokens) for one in lessons)
        told = kl if self.reference is not None else None
        return Learned(loss, told, clipped, 0.0, apart, load, read, 1)

    @torch.no_grad()
    def before(self, lessons: Sequence[Lesson]) -> list[Tensor | None]:
        """Each answer's log-probabilities by the policy as it is now."""
        found: list[Tensor | None] = [None] * len(lessons)
        for part in micro_batches(lessons, self.run.micro_tokens):
            answers = [lessons[i].answer for i in part]
            batch, rows, labels = laid_out(answers, self.device)
            column = self._logprobs(self.model, self.model(batch).hidden, rows, labels)
            for i, mine in zip(part, column.split([len(a.tokens) for a in answers]), strict=True):
                found[i] = mine
        return found

    def _taken(
        self, answers: Sequence[Answer], old: Sequence[Tensor | None]
    ) -> tuple[grpo.Taken, tuple[Routing, ...]]:
        """Columns of the answers' tokens, by the policy with its gradient, and who went where."""
        batch, rows, labels = laid_out(answers, self.device)
        output = self.model(batch)
        now = self._logprobs(self.model, output.hidden, rows, labels)
        known = [one for one in old if one is not None]
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                hidden = self.reference(batch).hidden
                reference = self._logprobs(self.reference, hidden, rows, labels)
        lengths = torch.tensor([len(answer.tokens) for answer in answers])
        which = torch.arange(len(answers)).repeat_interleave(lengths)
        drawn = torch.tensor([x for answer in answers for x in answer.logprobs])
        before = torch.cat(known) if known else now.detach()
        columns = drawn.to(self.device), which.to(self.device)
        read = sum(len(answer.prompt) + len(answer.tokens) - 1 for answer in answers)
        met = tuple(Routing(*(column[:read] for column in one)) for one in output.routings)
        return grpo.Taken(now, before, reference, *columns), met  # without the filler

    def _logprobs(self, model: DeepSeekV3, hidden: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        return logprobs(hidden[rows], model.lm_head.weight, labels, self.run.temperature)


def lessons_of(draw: Draw, run: GRPO) -> list[Lesson]:
    """The answers of the chosen groups, each with its advantage over its own."""
    if not draw.chosen:
        return []
    gains = grpo.advantages(draw.rewards(), run.objective.scale).tolist()
    return [
        Lesson(answer, gain, answer.is_whole or not run.mask_overlong)
        for group, row in zip(draw.chosen, gains, strict=True)
        for answer, gain in zip(group.answers, row, strict=True)
    ]


def laid_out(answers: Sequence[Answer], device: torch.device) -> tuple[Batch, Tensor, Tensor]:
    """Prompts and answers end to end, the rows that predict the answers' tokens, and these."""
    sequences = [[*answer.prompt, *answer.tokens[:-1]] for answer in answers]
    rows, at = [], 0
    for answer, sequence in zip(answers, sequences, strict=True):
        rows.append(torch.arange(at + len(answer.prompt) - 1, at + len(sequence)))
        at += len(sequence)
    labels = torch.tensor([token for answer in answers for token in answer.tokens])
    batch = Batch.from_sequences(sequences, multiple=ROUND)
    return batch.to(device), torch.cat(rows).to(device), labels.to(device)


def micro_batches(lessons: Sequence[Lesson], tokens: int) -> Iterator[list[int]]:
    """Lessons in order, as many at a time as have so many tokens, but at least one."""
    some: list[int] = []
    size = 0
    for i, lesson in enumerate(lessons):
        more = len(lesson.answer.prompt) + len(lesson.answer.tokens)
        if some and size + more > tokens:
            yield some
            some, size = [], 0
        some.append(i)
        size += more
    if some:
        yield some


def together(found: Sequence[Learned]) -> Learned:
    """Several optimizer steps of one draw: means, but the largest gap, and sums of what counts."""
    if not found:
        return NOTHING
    gaps = [one.gap for one in found]
    load = found[0].load
    for one in found[1:]:
        load = load + one.load
    kls = [one.kl for one in found if one.kl is not None]
    return Learned(
        fmean(one.loss for one in found),
        fmean(kls) if kls else None,
        fmean(one.clipped for one in found),
        fmean(one.grad_norm for one in found),
        Gap(fmean(g.mean for g in gaps), max(g.most for g in gaps), fmean(g.k3 for g in gaps)),
        load,
        sum(one.tokens for one in found),
        len(found),
    )
