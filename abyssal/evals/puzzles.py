"""Questions without end, each with a grade: the generators of reasoning-gym.

reasoning-gym (Apache 2.0, arXiv 2505.24760) makes the k-th question of a seed and grades answers.
A puzzle is put to a base model in the form of DeepSeek-R1 (arXiv 2501.12948, Table 1): plain text
in which a User asks, and an Assistant thinks between two tags and answers between two others. The
tags are text like any other; no text becomes a control token.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from abyssal.errors import ConfigError

_MANY = 2**31 - 1  # questions of a seed: made when they are asked for
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

PREAMBLE = (
    "A User asks and an Assistant answers. The Assistant first thinks in <think> </think> and then "
    "gives the answer in <answer> </answer>."
)


class Puzzle(NamedTuple):
    """A question, what answers it, and how an answer is graded."""

    task: str
    question: str
    answer: str
    grade: Callable[[str], float]  # an answer -> [0, 1]


class Generator:
    """All puzzles of one task and seed."""

    def __init__(self, task: str, seed: int, settings: Mapping[str, object] | None = None):
        """`settings` are those of the task's configuration in reasoning-gym.

        Raises:
            ConfigError: there is no such task, or it has no such setting.
        """
        import reasoning_gym  # type: ignore[import-untyped]  # two seconds: only for who asks

        try:
            self._made: Any = reasoning_gym.create_dataset(
                task, seed=seed, size=_MANY, **(settings or {})
            )
        except (ValueError, TypeError, AssertionError) as problem:
            raise ConfigError(
                f"reasoning-gym makes no {task!r} with {dict(settings or {})}: {problem}"
            ) from None
        self.task = task

    def __getitem__(self, number: int) -> Puzzle:
        """The puzzle of this number, from 0 on; always the same."""
        entry = self._made[number]
        return Puzzle(
            self.task, entry["question"], str(entry["answer"]), partial(self._grade, entry)
        )

    def walk(self, start: int = 0, *, held_out: bool = False) -> Iterator[tuple[int, Puzzle]]:
        """Numbers and puzzles from `start` on: of those held out, or of all others."""
        for number in range(start, _MANY):
            puzzle = self[number]
            if is_held_out(puzzle.question) == held_out:
                yield number, puzzle

    def _grade(self, entry: dict[str, object], answer: str) -> float:
        return float(self._made.score_answer(answer.strip(), entry))


def puzzles(name: str, *, seed: int, count: int, **settings: object) -> list[Puzzle]:
    """The first `count` puzzles of a task."""
    generator = Generator(name, seed, settings)
    return [generator[i] for i in range(count)]


def is_held_out(question: str) -> bool:
    """Whether a question is for examinations only: one in eight, by its text, whatever the seed."""
    return zlib.crc32(question.encode()) % 8 == 0


def settings_of(texts: Sequence[str]) -> dict[str, object]:
    """``["max_digits=2", "operators=+-"]`` as a mapping: numbers and true or false as such."""
    return dict(_setting(text) for text in texts)


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise ConfigError(f"setting {text!r} is not key=value; write for example max_digits=2")
    if value in ("true", "false"):
        return name, value == "true"
    if name == "operators":
        return name, list(value)
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def prompt_of(question: str) -> str:
    """The question as a base model is asked it."""
    return f"{PREAMBLE}\nUser: {' '.join(question.split())}\nAssistant:"


def answer_in(text: str) -> str | None:
    """What stands between the only answer tags of a text; None if there are none, or several."""
    found = _ANSWER.findall(text)
    return found[0].strip() if len(found) == 1 else None
