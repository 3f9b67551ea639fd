"""Questions that no rule can grade, and the reward model that judges the answers.

DeepSeek-R1 (arXiv 2501.12948), reinforcement for all scenarios: questions with a grade earn by
rules, general ones by a reward model and for their form. Helpfulness is judged on the summary, so
the model here reads what stands behind the thought.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from abyssal.data.conversations import read_conversations
from abyssal.data.documents import DropReport
from abyssal.errors import DataError
from abyssal.evals.puzzles import Puzzle
from abyssal.tokenizer.message import Message
from abyssal.train.reinforce import GRPO, General
from abyssal.train.reward_model import Judge
from abyssal.train.rewards import Model

Scores = Callable[[Sequence[tuple[str, str]]], list[float]]  # (question, answer) pairs -> numbers


def scores_of(run: GRPO, model: Model | None) -> Scores | None:
    """The run's reward model: the function handed in, else the folder that the recipe names.

    Raises:
        CheckpointError: the folder is not one of stage "reward".
    """
    if not run.rewards.model:
        return None
    if model is not None:
        return lambda pairs: [model(*pair) for pair in pairs]
    assert run.judge is not None, "rewards.model without a model is refused with the recipe"
    return FolderJudge(run.judge)


class FolderJudge:
    """A folder of stage "reward" as a function of questions and answers."""

    def __init__(self, folder: Path):
        self._judge = Judge(folder)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """A number for each pair; any scale.

        Raises:
            RequestError: question and answer together are too long for the reward model.
        """
        return self._judge(
            [[Message("user", asked), Message("assistant", said)] for asked, said in pairs]
        )


def general_questions(source: General) -> list[Puzzle]:
    """What is asked first in each conversation, once each.

    Raises:
        DataError: the rows cannot be read, or none of them asks.
    """
    found: dict[str, None] = {}
    for messages in read_conversations(source.rows, DropReport()):
        asked = next((m.content for m in messages if m.role == "user" and m.content), None)
        if asked:
            found[asked] = None
    if not found:
        raise DataError(f"{source.rows}: no row asks anything; expected conversations with a user")
    return [Puzzle(source.name, text, "", ungraded) for text in found]


def ungraded(answer: str) -> float:
    """The grade of any answer to a question without one."""
    return 0.0


def is_graded(puzzle: Puzzle) -> bool:
    """Whether a rule says if an answer is right."""
    return puzzle.grade is not ungraded


class GeneralQuestions:
    """The general questions of a run, from the step on that begins them."""

    def __init__(self, run: GRPO):
        self.run = run
        self._texts = [general_questions(source) for source in run.general]

    def mixed(self, puzzles: list[Puzzle], draw: int, again: int) -> list[Puzzle]:
        """A draw's questions with some of them general, by their weights, where it is time."""
        run = self.run
        if not self._texts or draw < run.general_after * run.steps:
            return puzzles
        lot = random.Random(f"{run.seed} {draw} {again} general")
        weights = [source.weight for source in run.general]
        share = sum(weights) / (sum(weights) + sum(task.weight for task in run.tasks))
        return [
            lot.choice(lot.choices(self._texts, weights)[0]) if lot.random() < share else puzzle
            for puzzle in puzzles
        ]
