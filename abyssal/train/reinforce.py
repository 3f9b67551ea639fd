"""Stage: a model that can do a little -> one that can do it, by rewards alone (GRPO).

DeepSeek-R1 (arXiv 2501.12948): R1-Zero starts from a base model, R1's first reinforcement from one
fine-tuned on few long thoughts; either is this stage with another `init`. The defaults are those of
the published run: 512 questions of 16 outputs each make 8,192 outputs, which are learned from once
in 16 steps. What is not published (R1-Zero's clip, its optimizer) is named in docs/training.md.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abyssal.errors import ConfigError
from abyssal.evals.puzzles import Generator, settings_of
from abyssal.train.forms import Form, Thinking
from abyssal.train.grpo import Objective
from abyssal.train.guard import GuardRules
from abyssal.train.optim import Optim
from abyssal.train.rewards import Rewards
from abyssal.train.schedule import Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A generator of reasoning-gym, and its share of the questions."""

    name: str
    settings: tuple[str, ...] = ()  # of its configuration, such as "max_digits=2"
    weight: float = 1.0

    def generator(self, seed: int) -> Generator:
        """Its questions under a seed."""
        return Generator(self.name, seed, settings_of(self.settings))


@dataclass(frozen=True, kw_only=True, slots=True)
class General:
    """Questions without a grade: what is asked first in the conversations of .jsonl files."""

    name: str
    rows: Path  # {"messages": [...]}, one a line
    weight: float = 1.0  # relative to the tasks


def _published_optim() -> Optim:
    always = (Segment(until=1, to=1.0),)
    return Optim(lr=3e-6, warmup_steps=0, weight_decay=0.0, schedule=always)


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPO:
    """A run that reinforces."""

    out: Path  # becomes the model folder
    init: Path  # the folder of the model to begin with, and its tokenizer
    tasks: tuple[Task, ...]
    steps: int = 650  # draws; each is followed by mini_batches * epochs optimizer steps
    minutes: float | None = None  # ceiling
    seed: int = 0
    questions: int = 512  # of a draw
    answers: int = 16  # to each question
    form: Form = "zero"  # plain text with tags, or a chat whose thought comes first
    layout: Thinking = "v3.1"  # of the chat
    judge: Path | None = None  # the folder of a run of stage "reward": rewards.model weighs it
    general: tuple[General, ...] = ()  # the judge's alone, where there are some
    general_after: float = 0.0  # share of the steps before they are drawn
    mini_batches: int = 16  # that a draw is split into at random
    epochs: int = 1  # over a draw
    temperature: float = 1.0
    max_tokens: int = 32_768  # of an answer
    dynamic: int = 0  # draws more at most, until `questions` groups have rewards that differ (DAPO)
    mask_overlong: bool = False  # learn nothing from answers cut off at max_tokens (DAPO)
    objective: Objective = field(default_factory=Objective)
    rewards: Rewards = field(default_factory=Rewards)
    reference_every: int = 400  # optimizer steps after which the reference is the policy again
    optim: Optim = field(default_factory=_published_optim)
    gamma: float = 0.0  # speed of the gates' biases; 0: frozen
    micro_tokens: int = 16_384  # of one forward and backward pass
    running: int = 256  # answers under way at once
    draft: int = 0  # tokens that the MTP module guesses ahead
    routing_every: int = (
        1  # steps between two comparisons of the engine's and the trainer's experts
    )
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    held_out: int = 200  # questions of each task for examinations
    save_every: int = 50
    keep: int = 2
    eval_every: int = 50
    guard: GuardRules = field(default_factory=GuardRules)

    def __post_init__(self) -> None:
        counts = (
            "steps", "questions", "answers", "mini_batches", "epochs", "max_tokens", "running",
            "reference_every", "held_out", "save_every", "keep", "eval_every", "routing_every",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1")
        if self.answers < 2:
            raise ConfigError("answers=1, expected at least 2: rewards are relative to their group")
        if not self.tasks or not all(task.weight > 0 for task in self.tasks):
            raise ConfigError("tasks: expected at least one, each with a weight above 0")
        if self.temperature <= 0:
            raise ConfigError(f"temperature={self.temperature}, expected a number above 0")
        if self.dynamic < 0 or self.gamma < 0 or self.draft < 0:
            raise ConfigError("dynamic, gamma and draft are numbers of at least 0")
        self._check_general()
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes={self.minutes}, expected more than 0, or no ceiling")

    def _check_general(self) -> None:
        if not 0 <= self.general_after < 1:
            raise ConfigError(
                f"general_after={self.general_after}, expected a share of the steps below 1"
            )
        if not all(source.weight > 0 for source in self.general):
            raise ConfigError("general: expected weights above 0")
        if self.general and not self.rewards.model:
            raise ConfigError(
                "general questions have no grade, and rewards.model=0; give a reward model as "
                "judge and rewards.model above 0, or leave them out"
            )
        if self.judge is not None and not self.rewards.model:
            raise ConfigError(f"judge={self.judge}, but rewards.model=0; give it a weight")
