"""Questions put to a policy and its answers judged: for learning, for examinations, for a look.

Q questions    G answers to each
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from abyssal.engine.request import SamplingParams
from abyssal.evals.puzzles import Puzzle
from abyssal.train import grpo
from abyssal.train.forms import Form, Thinking, chat_reply, prompt_tokens, zero_reply
from abyssal.train.general import GeneralQuestions, is_graded, scores_of
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
        self.run, self.rollouts = run, rollouts
        self.scores, self.general = scores_of(run, model), GeneralQuestions(run)
        self.questions = Questions(run.tasks, run.seed, run.held_out)
        self.draws = 0  # begun; refused steps included, so that none is drawn twice

    def draw(self) -> Draw:
        """Questions of a step and answers to them, once more where too few groups differ."""
        run = self.run
        groups: list[Group] = []
        chosen: list[Group] = []
        for again in range(1 + run.dynamic):
            asked = self.questions.next(run.questions, self.draws, again)
            asked = self.general.mixed(asked, self.draws, again)
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
        drawn = self.rollouts.draw(
            _prompts(puzzles, self.rollouts, run.form, run.layout), params, key
        )
        scores = self._scores(puzzles, drawn)
        return [
            judged(puzzle, answers, run.max_tokens, run.rewards, run.form, some)
            for puzzle, answers, some in zip(puzzles, drawn, scores, strict=True)
        ]

    def examine(self) -> list[Group]:
        """Greedy answers, one each, to the questions of all tasks that are held out."""
        run = self.run
        return examine(
            self.questions.held_out,
            self.rollouts,
            run.max_tokens,
            run.rewards,
            run.form,
            run.layout,
        )

    def state(self) -> dict[str, object]:
        """As JSON knows it."""
        return {**self.questions.state(), "draws": self.draws}

    def restore(self, state: Mapping[str, object]) -> None:
        """Take back what `state` gave."""
        self.questions.restore(state)
        draws = state["draws"]
        assert isinstance(draws, int)
        self.draws = draws

    def _scores(
        self, puzzles: Sequence[Puzzle], drawn: Sequence[Sequence[Answer]]
    ) -> list[list[float]]:
        """What the reward model says of each answer, all read together; 0 where it has no say.

        Where a run has general questions, it has none in those that a rule grades.
        """
        found = [[0.0] * len(answers) for answers in drawn]
        if self.scores is None:
            return found
        asked = [i for i, one in enumerate(puzzles) if not (self.run.general and is_graded(one))]
        pairs = [(puzzles[i].question, answer.text) for i in asked for answer in drawn[i]]
        said = iter(self.scores(pairs))
        for i in asked:
            found[i] = [next(said) for _ in drawn[i]]
        return found


def judged(
    puzzle: Puzzle,
    answers: list[Answer],
    longest: int,
    rewards: Rewards,
    form: Form = "zero",
    scores: Sequence[float] | None = None,
) -> Group:
    """A puzzle and answers of up to `longest` tokens, with their marks; `scores` are a model's."""
    parts = [
        judge(
            puzzle,
            zero_reply(answer.text) if form == "zero" else chat_reply(answer.thought, answer.text),
            len(answer.tokens) / longest,
            rewards,
            score,
        )
        for answer, score in zip(answers, scores or [0.0] * len(answers), strict=True)
    ]
    return Group(puzzle, answers, parts)


def examine(
    puzzles: Sequence[Puzzle],
    rollouts: Rollouts,
    longest: int,
    rewards: Rewards,
    form: Form = "zero",
    layout: Thinking = "v3.1",
) -> list[Group]:
    """Greedy answers of up to `longest` tokens, one each, and their marks by rules."""
    params = SamplingParams(max_tokens=longest, temperature=0)
    drawn = rollouts.draw(_prompts(puzzles, rollouts, form, layout), params, (0,))
    pairs = zip(puzzles, drawn, strict=True)
    return [judged(puzzle, answers, longest, rewards, form) for puzzle, answers in pairs]


def _prompts(
    puzzles: Sequence[Puzzle], rollouts: Rollouts, form: Form, layout: Thinking
) -> list[list[int]]:
    """General questions are answered at once where the layout allows it, as in fine-tuning."""
    prompts = rollouts.llm.prompts
    return [
        prompt_tokens(prompts, puzzle.question, form, layout, thinking=is_graded(puzzle))
        for puzzle in puzzles
    ]


def _differs(group: Group) -> bool:
    return bool(grpo.has_variance(torch.tensor([group.rewards]))[0])
