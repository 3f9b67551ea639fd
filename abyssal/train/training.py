"""A recipe put to work: check it, find or begin its run folder, and hand out a trainer.

Running the same recipe again goes on where it stopped, and does nothing when it is done.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from abyssal import recipe as recipes
from abyssal.config import PRESETS, ModelConfig
from abyssal.data.packing import Packer
from abyssal.data.shards import Shards
from abyssal.data.sources import Source
from abyssal.engine.llm import LLM
from abyssal.errors import ConfigError, DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message, render
from abyssal.train import history, pretrain, reinforcement, sft
from abyssal.train.folder import RunFolder
from abyssal.train.journal import Journal
from abyssal.train.machine import measure
from abyssal.train.pretrain import Pretrain
from abyssal.train.reinforcement import Reinforcement
from abyssal.train.run import DataSource
from abyssal.train.sft import SFT
from abyssal.train.trainer import Trainer

logger = logging.getLogger(__name__)

STAGES: dict[str, type[Pretrain] | type[SFT]] = {"pretrain": Pretrain, "sft": SFT}


class Training:
    """One run: iterate `steps()` to take it to its end, then look at `folder`."""

    def __init__(self, recipe: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()):
        self.where = str(recipe)
        values = recipes.load(recipe, overrides)
        self.stage = recipes.stage_of(values, STAGES, self.where)
        self.run = recipes.fill(STAGES[self.stage], _unfold_preset(values, self.where), self.where)
        self.place = RunFolder(self.run, self.stage, self.where)
        self.folder = self.run.out
        self.stopped_by: int | None = None
        self.planned_tokens = self.run.tokens

    @property
    def is_done(self) -> bool:
        """Whether an earlier call took this run to its end."""
        return self.place.is_done

    def steps(self) -> Iterator[history.Step]:
        """Take the steps that are left, then publish the model folder and its report."""
        if self.is_done:
            self.place.clear()  # of a kill after the end
            return
        run = self.run
        tokenizer = Tokenizer.load(run.tokenizer)
        packer = _packer(run, tokenizer)
        held_out = {
            s.name: _texts(s, tokenizer, run.data.held_out_documents) for s in run.data.held_out
        }
        model = (
            pretrain.build(run, tokenizer)
            if isinstance(run, Pretrain)
            else sft.build(run, tokenizer)
        )
        _check_samples(run, tokenizer, model.config.max_position_embeddings)
        machine = measure(self.place.precision())
        trainer = Trainer(run, model, packer, tokenizer, held_out, machine)
        self.place.open(machine)
        with Journal(self.folder) as journal:
            self._begin(trainer, journal)
            for step in trainer.steps(journal):
                self.planned_tokens = trainer.planned_tokens
                yield step
            self.stopped_by = trainer.stopped_by
            if trainer.is_finished:
                trainer.finish(journal)
                self._sample(journal, trainer)
        if trainer.is_finished:
            self.place.complete(trainer.step, trainer.tokens)

    def _begin(self, trainer: Trainer, journal: Journal) -> None:
        self.place.introduce(journal, trainer.model.config, trainer.machine)
        if trainer.resume():
            journal.write(history.Event(step=trainer.step, what="resumed"))
        elif self.stage == "sft":
            trainer.evaluate(journal)  # where the base model stands

    def _sample(self, journal: Journal, trainer: Trainer) -> None:
        """Complete the recipe's prompts once each; a chat model answers them."""
        llm = LLM(self.folder)
        is_chat = self.stage == "sft"
        for i, prompt in enumerate(self.run.samples):
            say = llm.chat if is_chat else llm.generate
            text = say(prompt, max_tokens=160, temperature=0.6, top_p=0.9, seed=i).text
            journal.write(history.Sample(step=trainer.step, prompt=prompt, text=text, chat=is_chat))


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


def _packer(run: Pretrain | SFT, tokenizer: Tokenizer) -> Packer:
    sources = [
        Source(shards=_open(source, tokenizer), weight=source.weight, name=source.name)
        for source in run.data.sources
    ]
    return Packer(
        sources,
        tokens_per_batch=run.batch.micro_tokens,
        seq_len=run.batch.seq_len,
        isolate=run.data.isolate,
        fim_rate=run.data.fim_rate,
        seed=run.seed,
    )


def _texts(source: DataSource, tokenizer: Tokenizer, documents: int) -> list[str]:
    """The first documents of a shard folder, as text again."""
    shards = _open(source, tokenizer)
    taken = range(min(documents, len(shards)))
    texts = [tokenizer.decode(shards.tokens(i).tolist()) for i in taken]
    if not any(texts):
        raise DataError(
            f"{source.shards}: its first {len(texts)} documents hold no text to score; "
            "leave it out of data.held_out, or raise held_out_documents"
        )
    return texts


def _check_samples(run: Pretrain | SFT, tokenizer: Tokenizer, context: int) -> None:
    """Refuse prompts too long for the model before the run, not at its end."""
    for prompt in run.samples:
        tokens = tokenizer.encode(prompt, bos=True)
        if isinstance(run, SFT):
            tokens = render([Message("user", prompt)], tokenizer).tokens
        if len(tokens) >= context:
            raise ConfigError(
                f"samples: {prompt!r:.60} has {len(tokens)} tokens, expected at most {context - 1} "
                f"(max_position_embeddings={context}); shorten it"
            )


def _open(source: DataSource, tokenizer: Tokenizer) -> Shards:
    shards = Shards(source.shards)
    if shards.meta.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"{source.shards} was encoded with another tokenizer than the recipe's; "
            "prepare it again with this one"
        )
    return shards
