"""Questions put to a policy and its answers judged: for learning, for examinations, for a look.

Q questions    G answers to each
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from abyssal.engine.request import SamplingParams
from abyssal.evals.puzzles import Puzzle, prompt_of
from abyssal.train import grpo
from abyssal.train.questions import Questions
from abyssal.train.reinforce import GRPO
from abyssal.train.rewards import Model, Parts, Rewards, judge
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
        self.questions = Questions(run.tasks, run.seed, run.held_out)
        self.draws = 0  # begun; refused steps included, so that none is drawn twice

    def draw(self) -> Draw:
        """Questions of a step and answers to them, once more where too few groups differ."""
        run = self.run
        groups: list[Group] = []
        chosen: list[Group] = []
        for again in range(1 + run.dynamic):
            asked = self.questions.next(run.questions, self.draws, again)
            new = self.answered(asked, (run.seed, self.draws, again))
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
        held_out = self.questions.held_out
        return examine(held_out, self.rollouts, run.max_tokens, run.rewards, self.model)

    def state(self) -> dict[str, object]:
        """As JSON knows it."""
        return {**self.questions.state(), "draws": self.draws}

    def restore(self, state: dict[str, object]) -> None:
        """Take back what `state` gave."""
        self.questions.restore(state)
        draws = state["draws"]
        assert isinstance(draws, int)
        self.draws = draws

    def _judged(self, puzzle: Puzzle, answers: list[Answer]) -> Group:
        return judged(puzzle, answers, self.run.max_tokens, self.run.rewards, self.model)


def judged(
    puzzle: Puzzle, answers: list[Answer], longest: int, rewards: Rewards, model: Model | None
) -> Group:
    """A puzzle and answers of up to `longest` tokens, with their marks."""
    parts = [
        judge(puzzle, answer.text, len(answer.tokens) / longest, rewards, model)
        for answer in answers
    ]
    return Group(puzzle, answers, parts)


def examine(
    puzzles: Sequence[Puzzle],
    rollouts: Rollouts,
    longest: int,
    rewards: Rewards,
    model: Model | None = None,
) -> list[Group]:
    """Greedy answers of up to `longest` tokens, one each, and their marks."""
    params = SamplingParams(max_tokens=longest, temperature=0)
    prompts = [prompt_of(puzzle.question) for puzzle in puzzles]
    drawn = rollouts.draw(prompts, params, (0,))
    pairs = zip(puzzles, drawn, strict=True)
    return [judged(puzzle, answers, longest, rewards, model) for puzzle, answers in pairs]


def _differs(group: Group) -> bool:
    return bool(grpo.has_variance(torch.tensor([group.rewards]))[0])
