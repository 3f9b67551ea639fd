"""Pipeline schedules by discrete events: what every rank does when, and how long it waits.

A chunk is what one rank does for one micro-batch: forward F, backward B, which is the gradient of
the inputs and then W, that of the weights; F&B is a forward and a backward of two micro-batches
run together, each computing while the other communicates. Idle time of a rank, with enough
micro-batches (DeepSeek-V3, arXiv 2412.19437, table 2; DualPipeV: its README):

    1F1B          (P-1) (F + B)
    ZB1P          (P-1) (F + B - 2W)
    DualPipe(V)   (P/2-1) (F&B + B - 3W)

Nothing here uses these formulas but `formula` itself: a schedule is every rank's list of tasks,
and a task begins when the rank is free and what it needs from its neighbors is there.

    P pipeline stages    m micro-batches
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from abyssal.errors import ConfigError

Schedule = Literal["1f1b", "zb1p", "dualpipe", "dualpipev"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
Kind = Literal["F", "B", "I", "W", "F&B"]  # I: the inputs' part of B alone, W follows later


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


class Chunk(NamedTuple):
    """One micro-batch at one stage; `pipe` 1 enters at the other end (DualPipe)."""

    pipe: int
    micro: int
    stage: int


class Task(NamedTuple):
    """What a rank does at a time."""

    kind: Kind
    forward: Chunk | None = None
    backward: Chunk | None = None


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


def check(schedule: Schedule, stages: int, micro_batches: int) -> None:
    """Refuse what no schedule of this name exists for."""
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule={schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if stages < 1 or micro_batches < 1:
        raise ConfigError(f"pp={stages} and {micro_batches} micro-batches, expected at least 1")
    if not schedule.startswith("dualpipe"):
        return
    if stages % 2:
        raise ConfigError(
            f"schedule {schedule} joins stages in pairs, but pp={stages} is odd; take an even pp, "
            "or the schedule zb1p"
        )
    if schedule == "dualpipe" and micro_batches % 2:
        raise ConfigError(
            f"dualpipe sends half of the micro-batches from either end, but {micro_batches} is "
            "odd; change sequences or micro_sequences so that they are even"
        )
    least = least_micro_batches(schedule, stages)
    if micro_batches < least:
        raise ConfigError(
            f"{schedule} over pp={stages} needs at least {least} micro-batches a step, but there "
            f"are {micro_batches}; raise sequences, lower dp or micro_sequences, or take zb1p"
        )


def least_micro_batches(schedule: Schedule, stages: int) -> int:
    """The fewest micro-batches that a schedule can be filled with."""
    return {"dualpipe": 2 * stages, "dualpipev": stages}.get(schedule, 1)


def program(schedule: Schedule, stages: int, micro_batches: int) -> list[list[Task]]:
    """Every rank's tasks in order."""
    if schedule == "dualpipe":
        return [_bidirectional(r, stages, micro_batches) for r in range(stages)]
    if schedule == "dualpipev":
        half = stages // 2
        return [_folded(r, half, micro_batches) for r in range(half)]
    plain = _one_forward_one_backward if schedule == "1f1b" else _zero_bubble
    return [plain(r, stages, micro_batches) for r in range(stages)]


# The schedules


def _one_forward_one_backward(rank: int, stages: int, m: int) -> list[Task]:
    """As many forwards as stages follow, then a backward after each forward."""
    warm = min(stages - 1 - rank, m)
    chunk = [Chunk(0, i, rank) for i in range(m)]
    tasks = [Task("F", forward=chunk[i]) for i in range(warm)]
    for i in range(m - warm):
        tasks += [Task("F", forward=chunk[warm + i]), Task("B", backward=chunk[i])]
    return tasks + [Task("B", backward=chunk[i]) for i in range(m - warm, m)]


def _zero_bubble(rank: int, stages: int, m: int) -> list[Task]:
    """The same with the weights' part later by as many micro-batches as stages came before
    (Qi et al., 2024: ZB-H1), so that the memory of the first rank is not exceeded.
    """
    tasks: list[Task] = []
    waiting: deque[Chunk] = deque()
    for task in _one_forward_one_backward(rank, stages, m):
        if task.backward is None:
            tasks.append(task)
            continue
        tasks.append(Task("I", backward=task.backward))
        waiting.append(task.backward)
        if len(waiting) > rank:
            tasks.append(Task("W", backward=waiting.popleft()))
    return tasks + [Task("W", backward=chunk) for chunk in waiting]


def _bidirectional(rank: int, stages: int, m: int) -> list[Task]:
    """DualPipe: rank r holds stage r of the pipe from one end and P-1-r of that from the other."""
    other = stages - 1 - rank
    pipes = ((0, rank), (1, other)) if rank < other else ((1, other), (0, rank))
    return _phases(pipes, min(rank, other), stages // 2, m // 2)


def _folded(rank: int, ranks: int, m: int) -> list[Task]:
    """DualPipeV: a rank holds a stage of the way down and its mirror image of the way up."""
    return _phases(((0, rank), (0, 2 * ranks - 1 - rank)), rank, ranks, m)


class _Rank:
    """The tasks of a rank that serves two ways: 0 enters at the nearer end, 1 at the other."""

    def __init__(self, ways: Sequence[tuple[int, int]]):
        """(pipe, stage) of both ways."""
        self.ways, self.tasks = ways, list[Task]()
        self.begun, self.ended = [0, 0], [0, 0]
        self.deferred: deque[Chunk] = deque()

    def forward(self, way: int) -> None:
        self.tasks.append(Task("F", forward=self._next(self.begun, way)))

    def backward(self, way: int, *, defer: bool = False) -> None:
        chunk = self._next(self.ended, way)
        self.tasks.append(Task("I" if defer else "B", backward=chunk))
        if defer:
            self.deferred.append(chunk)

    def weights(self) -> None:
        self.tasks.append(Task("W", backward=self.deferred.popleft()))

    def both(self, there: int, back: int) -> None:
        forward, backward = self._next(self.begun, there), self._next(self.ended, back)
        self.tasks.append(Task("F&B", forward, backward))

    def _next(self, counts: list[int], way: int) -> Chunk:
        pipe, stage = self.ways[way]
        counts[way] += 1
        return Chunk(pipe, counts[way] - 1, stage)


def _phases(ways: Sequence[tuple[int, int]], h: int, half: int, n: int) -> list[Task]:
    """The eight phases of the released schedule, for a rank that h ranks separate from the nearer
    end, of `half` ranks to the middle; n micro-batches come each way.
    """
    rank, inner, middle = _Rank(ways), half - h - 1, h == half - 1
    for _ in range(2 * inner):  # 1
        rank.forward(0)
    for _ in range(h + 1):  # 2
        rank.forward(0)
        rank.forward(1)
    for _ in range(inner):  # 3
        rank.backward(1, defer=True)
        rank.weights()
        rank.forward(1)
    for i in range(n - 2 * half + h + 1):  # 4
        if i == 0 and middle:  # apart, so that the other middle rank waits less
            rank.forward(0)
            rank.backward(1)
        else:
            rank.both(0, 1)
        rank.both(1, 0)
    for _ in range(inner):  # 5
        rank.backward(1)
        rank.both(1, 0)
    for i in range(h + 1):  # 6: the second half of these backwards defers the weights
        rank.backward(1, defer=2 * i >= h + 1)
        rank.backward(0, defer=2 * i + 1 >= h + 1)
    for _ in range(inner):  # 7
        rank.weights()
        rank.backward(0, defer=True)
    for _ in range(h + 1):  # 8
        rank.weights()
    return rank.tasks


# Events


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
