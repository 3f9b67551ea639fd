"""What a step of reinforcement and an examination are written down as."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from abyssal.train import history
from abyssal.train.exercises import Draw, Group
from abyssal.train.general import is_graded
from abyssal.train.lessons import Learned


def drawn(
    draw: Draw,
    learned: Learned,
    *,
    step: int,
    tokens: int,
    routing: float | None,
    accepted: float | None,
    rollout_s: float,
    train_s: float,
) -> history.Reinforce:
    """The answers of a step and what came of them; entropy is the mean surprise of their tokens."""
    parts = [one for group in draw.groups for one in group.parts]
    graded = [one for g in draw.groups if is_graded(g.puzzle) for one in g.parts]
    answers = [one for group in draw.groups for one in group.answers]
    lengths = [len(answer.tokens) for answer in answers]
    return history.Reinforce(
        step=step,
        tokens=tokens,
        answers=len(answers),
        reward=fmean(one.total for one in parts),
        accuracy=fmean(one.accuracy for one in graded) if graded else 0.0,
        format=fmean(one.format for one in parts),
        language=fmean(one.language for one in parts),
        model=fmean(one.model for one in parts),
        length=fmean(lengths),
        longest=max(lengths),
        overlong=fmean(not answer.is_whole for answer in answers),
        groups=len(draw.groups),
        skipped=sum(max(group.rewards) == min(group.rewards) for group in draw.groups),
        entropy=fmean(-x for answer in answers for x in answer.logprobs),
        kl=learned.kl,
        clipped=learned.clipped,
        gap_mean=learned.gap.mean,
        gap_max=learned.gap.most,
        gap_k3=learned.gap.k3,
        routing=routing,
        accepted=accepted,
        rollout_s=rollout_s,
        train_s=train_s,
    )


def examined(
    groups: Sequence[Group], *, step: int, tokens: int
) -> Iterator[history.Examination | history.Sample]:
    """A row for each task, and one of its answers to read."""
    for task in dict.fromkeys(group.puzzle.task for group in groups):
        mine = [group for group in groups if group.puzzle.task == task]
        yield history.Examination(
            step=step,
            tokens=tokens,
            name=task,
            right=sum(group.parts[0].accuracy == 1 for group in mine),
            asked=len(mine),
            formatted=sum(group.parts[0].format == 1 for group in mine),
        )
        yield history.Sample(
            step=step, prompt=mine[0].puzzle.question, text=mine[0].answers[0].shown
        )
