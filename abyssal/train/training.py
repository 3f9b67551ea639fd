"""A recipe put to work: check it, find or begin its run folder, and hand out a trainer.

Running the same recipe again goes on where it stopped, and does nothing when it is done.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from abyssal import recipe as recipes
from abyssal.config import PRESETS, ModelConfig
from abyssal.engine.llm import LLM
from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.parallel.ranks import Ranks
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message, render
from abyssal.train import distill, history, preference, pretrain, reinforcement, reward_model, sft
from abyssal.train.folder import RunFolder
from abyssal.train.journal import Journal, Unwritten
from abyssal.train.machine import Machine, measure, together
from abyssal.train.reinforcement import Reinforcement
from abyssal.train.run import Run

logger = logging.getLogger(__name__)


class Loop(Protocol):
    """What takes a run from its first step to its last: trainer.py's, or a stage's own."""

    model: DeepSeekV3
    machine: Machine
    step: int
    tokens: int
    planned_tokens: float
    stopped_by: int | None  # the signal that ended `steps` early
    peak_memory_bytes: int | None

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""

    def resume(self) -> bool:
        """Go on from the newest saved state, if there is one."""

    def evaluate(self, journal: Journal) -> None:
        """Score what is held out."""

    def steps(self, journal: Journal) -> Iterator[history.Step]:
        """Take the steps that are left, saving on the way and at the end."""

    def finish(self, journal: Journal) -> None:
        """Publish what the run is for."""


class Stage(NamedTuple):
    """A kind of run: what its recipe says, and the loop before the first step."""

    run: type[Run]
    begin: Callable[[Any, Tokenizer, Machine], Loop]
    tunes: bool = True  # a model that is scored before the first step
    chats: bool = True  # samples are answers of a chat, not continuations


STAGES = {
    "pretrain": Stage(pretrain.Pretrain, pretrain.begin, tunes=False, chats=False),
    "sft": Stage(sft.SFT, sft.begin),
    "dpo": Stage(preference.DPO, preference.begin),
    "reward": Stage(reward_model.Reward, reward_model.begin, chats=False),
    "distill": Stage(distill.Distill, distill.begin, chats=False),
}


class Training:
    """One run: iterate `steps()` to take it to its end, then look at `folder`."""

    def __init__(self, recipe: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()):
        self.where = str(recipe)
        values = recipes.load(recipe, overrides)
        self.stage = recipes.stage_of(values, STAGES, self.where)
        kind = STAGES[self.stage].run
        self.run = recipes.fill(kind, _unfold_preset(values, self.where), self.where)
        self.place = RunFolder(self.run, self.stage, self.where)
        self.folder = self.run.out
        self.ranks = Ranks.of_environment()
        self.stopped_by: int | None = None
        self.planned_tokens = self.run.tokens
        self.peak_memory_bytes: int | None = None  # of the largest process, known at the end

    @property
    def is_done(self) -> bool:
        """Whether an earlier call took this run to its end."""
        return self.place.is_done

    def steps(self) -> Iterator[history.Step]:
        """Take the steps that are left, then publish the model folder and its report.

        Of several processes, each one does; the first writes.
        """
        if self.is_done:
            if self.ranks.is_first:
                self.place.clear()  # of a kill after the end
            return
        run = self.run
        self.ranks.join()
        tokenizer = Tokenizer.load(run.tokenizer)
        machine = together(measure(self.place.precision()), self.ranks)
        loop = STAGES[self.stage].begin(run, tokenizer, machine)
        self._check_samples(tokenizer, loop.model.config.max_position_embeddings)
        if self.ranks.is_first:
            self.place.open(machine)
        with Journal(self.folder) if self.ranks.is_first else Unwritten() as journal:
            self._begin(loop, journal)
            for step in loop.steps(journal):
                self.planned_tokens = loop.planned_tokens
                yield step
            self.stopped_by = loop.stopped_by
            if loop.is_finished:
                loop.finish(journal)
                self.peak_memory_bytes = loop.peak_memory_bytes
                if self.ranks.is_first:
                    self._sample(journal, loop.step)
        if loop.is_finished and self.ranks.is_first:
            self.place.complete(loop.step, loop.tokens)

    def _begin(self, loop: Loop, journal: Journal) -> None:
        self.place.introduce(journal, loop.model.config, loop.machine)
        is_resumed = loop.resume()
        self._check_agreement(loop)
        if is_resumed:
            journal.write(history.Event(step=loop.step, what="resumed"))
        elif STAGES[self.stage].tunes:
            loop.evaluate(journal)  # where the model stands

    def _check_agreement(self, loop: Loop) -> None:
        """Refuse processes that were not given the same to do, or do not see the same folder."""
        for rank, found in enumerate(self.ranks.everyone([self.place.written, loop.step])):
            if found != [self.place.written, loop.step]:
                raise ConfigError(
                    f"rank {rank} of {self.ranks.world} stands at step {found[1]} and rank "
                    f"{self.ranks.rank} at {loop.step}, or their recipes differ; give all the same "
                    f"recipe, and an out={self.folder} that all of them see"
                )

    def _sample(self, journal: Journal, step: int) -> None:
        """Complete the recipe's prompts once each; a chat model answers them."""
        if not self.run.samples:
            return
        llm, is_chat = LLM(self.folder), STAGES[self.stage].chats
        for i, prompt in enumerate(self.run.samples):
            say = llm.chat if is_chat else llm.generate
            text = say(prompt, max_tokens=160, temperature=0.6, top_p=0.9, seed=i).text
            journal.write(history.Sample(step=step, prompt=prompt, text=text, chat=is_chat))

    def _check_samples(self, tokenizer: Tokenizer, context: int) -> None:
        """Refuse prompts too long for the model before the run, not at its end."""
        for prompt in self.run.samples:
            tokens = tokenizer.encode(prompt, bos=True)
            if STAGES[self.stage].chats:
                tokens = render([Message("user", prompt)], tokenizer).tokens
            if len(tokens) >= context:
                raise ConfigError(
                    f"samples: {prompt!r:.60} has {len(tokens)} tokens, expected at most "
                    f"{context - 1} (max_position_embeddings={context}); shorten it"
                )


def begin(
    recipe: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()
) -> Training | Reinforcement:
    """The run of a recipe, by the loop that its stage has."""
    values = recipes.load(recipe, overrides)
    stage = recipes.stage_of(values, (*STAGES, reinforcement.STAGE), str(recipe))
    made = Reinforcement if stage == reinforcement.STAGE else Training
    return made(recipe, overrides)


def train(recipe: str | Path, **overrides: object) -> Path:
    """Run a recipe to its end, resuming what is there -> the model folder.

    `recipe` is a packaged name such as ``tiny/base`` or a path; overrides are tables as keywords:
    ``train("tiny/base", tokens=1e6, optim={"lr": 1e-3})``.
    """
    training = begin(recipe, overrides)
    for step in training.steps():
        if isinstance(step, history.Reinforce):
            logger.info("step %d: reward %.3f", step.step, step.reward)
        elif step.step % 50 == 0:
            logger.info(
                "step %d: loss %.3f, %.0f tokens/s", step.step, step.loss, step.tokens_per_s
            )
    return training.folder


def _unfold_preset(values: dict[str, object], where: str) -> dict[str, object]:
    """[model] preset = "tiny" stands for all its fields; what else the table states goes on top."""
    values = {key: value for key, value in values.items() if key not in ("stage", "base")}
    table = values.get("model")
    if not isinstance(table, dict) or "preset" not in table:
        return values
    name = table["preset"]
    if name not in PRESETS:
        raise ConfigError(f"{where}: model.preset={name!r}, expected one of {', '.join(PRESETS)}")
    preset: ModelConfig = PRESETS[name]
    fields = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    fields |= {key: value for key, value in table.items() if key != "preset"}
    return values | {"model": fields}
