"""Pipeline schedules as every rank's list of tasks: 1F1B, ZB1P, DualPipe and DualPipeV.

A chunk is what one rank does for one micro-batch: forward F, backward B, which is the gradient of
the inputs and then W, that of the weights; F&B is a forward and a backward of two micro-batches
run together, each computing while the other communicates. DeepSeek-V3 (arXiv 2412.19437), section
3.2.1; ZB1P: Qi et al., 2024; DualPipeV: its README.

    P pipeline stages    m micro-batches
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from abyssal.errors import ConfigError

Schedule = Literal["1f1b", "zb1p", "dualpipe", "dualpipev"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
Kind = Literal["F", "B", "I", "W", "F&B"]  # I: the inputs' part of B alone, W follows later


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
