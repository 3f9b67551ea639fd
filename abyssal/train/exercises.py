"""Questions put to a policy and its answers judged: for learning, for examinations, for a look.

Q questions    G answers to each
"""

import random
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from abyssal.engine.request import SamplingParams
from abyssal.evals.puzzles import Puzzle, prompt_of
from abyssal.train import grpo
from abyssal.train.reinforce import GRPO
from abyssal.train.rewards import Model, Parts, judge
from abyssal.train.rollouts import Answer, Rollouts


class Group(NamedTuple):
    """A question, the answers to it, and their marks."""

    puzzle: Puzzle
    answers: list[Answer]
    parts: list[Parts]

    @property
    def rewards(self) -> list[float]:
        """Of each answer."""
        return [one.total for one in self.parts]


class Draw(NamedTuple):
    """All groups drawn for a step, and those of them to learn from."""

    groups: list[Group]
    chosen: list[Group]

    def rewards(self) -> Tensor:
        """Of the chosen groups (Q, G)."""
        return torch.tensor([group.rewards for group in self.chosen]).view(len(self.chosen), -1)


class Exercises:
    """The tasks of a run and its place in them."""

    def __init__(self, run: GRPO, rollouts: Rollouts, model: Model | None = None):
        self.run, self.rollouts, self.model = run, rollouts, model
        self._generators = [task.generator(run.seed) for task in run.tasks]
        self._held_out = [
            puzzle
            for task in run.tasks
            for _, puzzle in islice(task.generator(0).walk(held_out=True), run.held_out)
        ]
        self._places = [0] * len(run.tasks)  # the next question of each task
        self.draws = 0  # begun; refused steps included, so that none is drawn twice

    def draw(self) -> Draw:
        """Questions of a step and answers to them, once more where too few groups differ."""
        run = self.run
        groups: list[Group] = []
        chosen: list[Group] = []
        for again in range(1 + run.dynamic):
            new = self.answered(self._questions(again), (run.seed, self.draws, again))
            groups += new
            chosen += [group for group in new if _differs(group)]
            if len(chosen) >= run.questions:
                break
        self.draws += 1
        return Draw(groups, chosen[: run.questions])

    def answered(self, puzzles: Sequence[Puzzle], key: Sequence[int]) -> list[Group]:
        """Each puzzle with its answers, drawn by the random numbers of `key`."""
        run = self.run
        params = SamplingParams(
            max_tokens=run.max_tokens,
            temperature=run.temperature,
            n=run.answers,
            logprobs=0,
            scaled_logprobs=True,
        )
        prompts = [prompt_of(puzzle.question) for puzzle in puzzles]
        drawn = self.rollouts.draw(prompts, params, key)
        return [
            self._judged(puzzle, answers) for puzzle, answers in zip(puzzles, drawn, strict=True)
        ]

    def examine(self) -> list[Group]:
        """Greedy answers, one each, to the questions of all tasks that are held out."""
        run = self.run
        puzzles = self._held_out
        params = SamplingParams(max_tokens=run.max_tokens, temperature=0)
        prompts = [prompt_of(puzzle.question) for puzzle in puzzles]
        drawn = self.rollouts.draw(prompts, params, (0,))
        return [self._judged(*pair) for pair in zip(puzzles, drawn, strict=True)]

    def state(self) -> dict[str, object]:
        """As JSON knows it."""
        return {"places": self._places, "draws": self.draws}

    def restore(self, state: dict[str, object]) -> None:
        """Take back what `state` gave."""
        places, draws = state["places"], state["draws"]
        assert isinstance(places, list)
        assert isinstance(draws, int)
        self._places, self.draws = list(places), draws

    def _questions(self, again: int) -> list[Puzzle]:
        """The next questions, of tasks by lot."""
        lot = random.Random(f"{self.run.seed} {self.draws} {again}")
        weights = [task.weight for task in self.run.tasks]
        tasks = lot.choices(range(len(weights)), weights, k=self.run.questions)
        return [self._next(task) for task in tasks]

    def _next(self, task: int) -> Puzzle:
        number, puzzle = next(self._generators[task].walk(self._places[task]))
        self._places[task] = number + 1
        return puzzle

    def _judged(self, puzzle: Puzzle, answers: list[Answer]) -> Group:
        parts = [
            judge(
                puzzle,
                answer.text,
                len(answer.tokens) / self.run.max_tokens,
                self.run.rewards,
                self.model,
            )
            for answer in answers
        ]
        return Group(puzzle, answers, parts)


def _differs(group: Group) -> bool:
    return bool(grpo.has_variance(torch.tensor([group.rewards]))[0])
