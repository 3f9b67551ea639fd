"""A recipe of reinforcement put to work in its folder, or looked at before anything is spent."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from abyssal import recipe as recipes
from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.parallel.ranks import Ranks
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import history
from abyssal.train.exercises import Exercises, Group
from abyssal.train.folder import RunFolder
from abyssal.train.journal import Journal, Row
from abyssal.train.machine import measure
from abyssal.train.reinforce import GRPO
from abyssal.train.reinforcer import Reinforcer
from abyssal.train.rewards import Model
from abyssal.train.rollouts import Rollouts
from abyssal.train.trainer import working_copy

STAGE = "grpo"
MOST_BARS = 12  # of a histogram


class Look(NamedTuple):
    """What an untouched model earns."""

    questions: int
    answers: int  # to each
    histogram: dict[float, int]  # answers by reward
    accuracy: float
    format: float
    differing: int  # questions whose answers earn different rewards
    sample: str

    def check(self) -> None:
        """Raise ConfigError if there is nothing to choose from."""
        if self.differing:
            return
        (reward,) = self.histogram if len(self.histogram) == 1 else (None,)
        raise ConfigError(
            f"all {self.answers} answers to each of {self.questions} questions earn the same"
            + (f" ({reward:g})" if reward is not None else "")
            + ", so no gradient would flow; take easier tasks or a model that has seen a few "
            "solutions, or raise answers or temperature"
        )


class Reinforcement:
    """One run: iterate `steps()` to take it to its end, then look at `folder`."""

    def __init__(
        self,
        recipe: str | Path,
        overrides: Sequence[str] | Mapping[str, object] = (),
        judge: Model | None = None,
    ):
        """`judge` is a reward model, where the recipe gives one a weight."""
        Ranks.of_environment().check_alone(f"{recipe}: stage {STAGE}")
        self.where, self.stage, self.judge = str(recipe), STAGE, judge
        values = recipes.load(recipe, overrides)
        recipes.stage_of(values, (STAGE,), self.where)
        values = {key: value for key, value in values.items() if key != "stage"}
        self.run = recipes.fill(GRPO, values, self.where)
        if self.run.rewards.model and judge is None and self.run.judge is None:
            raise ConfigError(
                f"{self.where}: rewards.model={self.run.rewards.model:g}, but no reward model is "
                'given; name a folder of stage "reward" as judge, pass a function as '
                "Reinforcement(..., judge=...), or set it to 0"
            )
        self.place = RunFolder(self.run, STAGE, self.where)
        self.folder = self.run.out
        self.stopped_by: int | None = None
        self.told: Callable[[Row], None] | None = None  # gets each row that is written down

    @property
    def is_done(self) -> bool:
        """Whether an earlier call took this run to its end."""
        return self.place.is_done

    def look(self, questions: int = 64) -> Look:
        """Let the untouched model answer, learn nothing, and write nothing."""
        run = self.run
        tokenizer, model = self._start()
        model = working_copy(model, measure(self.place.precision()))
        rollouts = Rollouts(model, tokenizer, running=run.running)
        exercises = Exercises(run, rollouts, self.judge)
        groups: list[Group] = []
        while len(groups) < questions:
            groups += exercises.draw().groups
        groups = groups[:questions]
        parts = [one for group in groups for one in group.parts]
        totals = _histogram([one.total for one in parts])
        return Look(
            len(groups),
            run.answers,
            totals,
            fmean(one.accuracy for one in parts),
            fmean(one.format for one in parts),
            sum(max(group.rewards) != min(group.rewards) for group in groups),
            f"{groups[0].puzzle.question}\n{groups[0].answers[0].shown}",
        )

    def steps(self) -> Iterator[history.Reinforce]:
        """Take the steps that are left, then publish the model folder and its report."""
        if self.is_done:
            self.place.clear()  # of a kill after the end
            return
        tokenizer, model = self._start()
        machine = measure(self.place.precision())
        policy = Reinforcer(self.run, model, tokenizer, machine, self.judge)
        self.place.open(machine)
        with Journal(self.folder, self.told) as journal:
            self.place.introduce(journal, model.config, machine)
            if policy.resume():
                journal.write(history.Event(step=policy.step, what="resumed"))
            else:
                policy.examine(journal)  # where the untouched model stands
            yield from policy.steps(journal)
            self.stopped_by = policy.stopped_by
            if policy.is_finished:
                policy.finish(journal)
        if policy.is_finished:
            self.place.complete(policy.step, policy.tokens)

    def _start(self) -> tuple[Tokenizer, DeepSeekV3]:
        run = self.run
        tokenizer, model = Tokenizer.load(run.init), DeepSeekV3.load(run.init)
        context = model.config.max_position_embeddings
        if run.max_tokens >= context:
            raise ConfigError(
                f"max_tokens={run.max_tokens}, but {run.init} reaches max_position_embeddings="
                f"{context}, prompts included; lower max_tokens"
            )
        return tokenizer, model


def _histogram(rewards: Sequence[float]) -> dict[float, int]:
    """How many earn what, in order; in steps of a tenth of the span where many earn differently."""
    exact = Counter(round(reward, 3) for reward in rewards)
    if len(exact) > MOST_BARS:
        step = (max(rewards) - min(rewards)) / 10
        exact = Counter(round(round(reward / step) * step, 3) for reward in rewards)
    return dict(sorted(exact.items()))
