"""The questions of a run: tasks by lot, each read from its own place on, and those held out."""

import random
from collections.abc import Mapping, Sequence
from itertools import islice

from abyssal.evals.puzzles import Puzzle
from abyssal.train.reinforce import Task


class Questions:
    """The tasks of a run and its place in them."""

    def __init__(self, tasks: Sequence[Task], seed: int, held_out: int):
        """`held_out` questions of each task are for examinations."""
        self.tasks, self.seed = tasks, seed
        self._generators = [task.generator(seed) for task in tasks]
        self.held_out = [
            puzzle
            for task in tasks
            for _, puzzle in islice(task.generator(0).walk(held_out=True), held_out)
        ]
        self.places = [0] * len(tasks)  # the next question of each task

    def next(self, count: int, *lot: int) -> list[Puzzle]:
        """The next questions, of tasks by the numbers of a lot."""
        drawn = random.Random(" ".join(map(str, (self.seed, *lot))))
        weights = [task.weight for task in self.tasks]
        tasks = drawn.choices(range(len(weights)), weights, k=count)
        return [self._next(task) for task in tasks]

    def _next(self, task: int) -> Puzzle:
        number, puzzle = next(self._generators[task].walk(self.places[task]))
        self.places[task] = number + 1
        return puzzle

    def state(self) -> dict[str, object]:
        """The place, as JSON knows it."""
        return {"places": self.places}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take back what `state` gave."""
        places = state["places"]
        assert isinstance(places, list)
        self.places = list(places)
