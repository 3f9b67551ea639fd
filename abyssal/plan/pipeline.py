"""Pipelines by discrete events: what every rank does when, and how long it waits.

Idle time of a rank, with enough micro-batches (DeepSeek-V3, arXiv 2412.19437, table 2; DualPipeV:
its README):

    1F1B          (P-1) (F + B)
    ZB1P          (P-1) (F + B - 2W)
    DualPipe(V)   (P/2-1) (F&B + B - 3W)

Nothing here uses these formulas but `formula` itself: a task of a schedule
(schedules.py) begins when the rank is free and what it needs from its neighbors is there.

    P pipeline stages    m micro-batches
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from abyssal.plan.schedules import Chunk, Kind, Schedule, Task, check, program


class Times(NamedTuple):
    """How long the chunks of one stage take, in any unit."""

    forward: float = 1.0
    backward: float = 2.0  # inputs and weights
    weights: float = 1.0  # of that, the weights
    both: float = 3.0  # a forward and a backward overlapped

    def of(self, kind: Kind) -> float:
        """The time of a task."""
        inputs = self.backward - self.weights
        return {"F": self.forward, "B": self.backward, "I": inputs, "W": self.weights}.get(
            kind, self.both
        )


class Span(NamedTuple):
    """A task where it came to lie."""

    start: float
    end: float
    task: Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """A simulated step; every rank's spans in order."""

    schedule: Schedule
    ranks: tuple[tuple[Span, ...], ...]

    @property
    def span(self) -> float:
        """From the first task to the end of the last."""
        return max(spans[-1].end for spans in self.ranks)

    @property
    def idle(self) -> tuple[float, ...]:
        """Of each rank, while any is at work."""
        busy = (sum(span.end - span.start for span in spans) for spans in self.ranks)
        return tuple(self.span - time for time in busy)

    @property
    def bubble(self) -> float:
        """The idle share of all ranks' time."""
        return sum(self.idle) / (self.span * len(self.ranks))

    @property
    def peak_chunks(self) -> tuple[int, ...]:
        """Most chunks of each rank whose backward is still to come: activations kept at once."""
        return tuple(map(_peak_chunks, self.ranks))


def simulate(
    schedule: Schedule, stages: int, micro_batches: int, times: Times | Sequence[Times]
) -> Timeline:
    """One step; DualPipe's micro-batches are those of both directions, times perhaps of each stage.

    Raises:
        ConfigError: the schedule does not exist for so many stages or micro-batches.
    """
    check(schedule, stages, micro_batches)
    programs = program(schedule, stages, micro_batches)
    each = [times] * stages if isinstance(times, Times) else list(times)
    return Timeline(schedule=schedule, ranks=_run(programs, each))


def formula(schedule: Schedule, stages: int, times: Times) -> float:
    """The idle time of every rank as published, with enough micro-batches."""
    F, B, W, both = times
    if schedule == "1f1b":
        return (stages - 1) * (F + B)
    if schedule == "zb1p":
        return (stages - 1) * (F + B - 2 * W)
    return (stages / 2 - 1) * (both + B - 3 * W)


def _run(
    programs: Sequence[Sequence[Task]], times: Sequence[Times]
) -> tuple[tuple[Span, ...], ...]:
    """Every task as early as its rank and its neighbors allow; times of each stage."""
    ended: dict[tuple[str, Chunk], float] = {}
    placed: list[list[Span]] = [[] for _ in programs]
    moved = True
    while moved:
        moved = False
        for rank, tasks in enumerate(programs):
            spans = placed[rank]
            while len(spans) < len(tasks):
                task = tasks[len(spans)]
                needed = _needs(task, len(times))
                if any(need not in ended for need in needed):
                    break
                start = max([spans[-1].end if spans else 0.0, *(ended[need] for need in needed)])
                end = start + _time(task, times)
                spans.append(Span(start, end, task))
                if task.forward:
                    ended["F", task.forward] = end
                if task.backward:
                    ended["W" if task.kind == "W" else "B", task.backward] = end
                moved = True
    stuck = [rank for rank, spans in enumerate(placed) if len(spans) < len(programs[rank])]
    assert not stuck, f"ranks {stuck} wait for each other"
    return tuple(map(tuple, placed))


def _time(task: Task, times: Sequence[Times]) -> float:
    """Two stages that run together take the mean of what each would with itself."""
    kinds = [times[chunk.stage].of(task.kind) for chunk in (task.forward, task.backward) if chunk]
    return sum(kinds) / len(kinds)


def _needs(task: Task, stages: int) -> list[tuple[str, Chunk]]:
    """What has to be over before: the stage before, the stage behind, or the rank's own part."""
    needed = []
    if task.forward and task.forward.stage:
        needed.append(("F", task.forward._replace(stage=task.forward.stage - 1)))
    if task.backward and task.kind == "W":
        needed.append(("B", task.backward))
    elif task.backward:
        needed.append(("F", task.backward))
        if task.backward.stage < stages - 1:
            needed.append(("B", task.backward._replace(stage=task.backward.stage + 1)))
    return needed


def _peak_chunks(spans: Sequence[Span]) -> int:
    """A forward's activations are kept until the backward of its inputs is over."""
    kept = peak = 0
    for span in spans:
        kept += span.task.forward is not None
        peak = max(peak, kept)
        kept -= span.task.backward is not None and span.task.kind != "W"
    return peak
