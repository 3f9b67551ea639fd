"""Comparisons as training reads them: answers side by side, an epoch after another.

Preference tuning and reward models share all of this: what a recipe says of such data, examples in
memory, micro-batches of whole examples, a place that can be saved, and held-out accuracy.

    N sequences of a batch    T its tokens
"""

import itertools
import logging
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.data import corpus
from abyssal.data.documents import DropReport
from abyssal.data.preferences import (
    Comparison,
    Encoded,
    encode_answer,
    ending_pairs,
    read_comparisons,
    subject_pairs,
)
from abyssal.data.requests import Requests
from abyssal.errors import ConfigError, DataError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Layout
from abyssal.train import lora
from abyssal.train.history import Measure
from abyssal.train.objective import Piece, Probe
from abyssal.train.run import Tuning

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonSource:
    """Rows of a file (data/preferences.py), or so many pairs made of the packaged stories."""

    name: str
    rows: Path | None = None
    shipped: int | None = None
    kind: Literal["subjects", "endings"] = "subjects"  # of pairs that are shipped
    split: Literal["train", "valid"] = "train"  # of the packaged stories

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.shipped is None):
            raise ConfigError(f"source {self.name!r}: expected either rows or shipped")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonData:
    """Where comparisons come from."""

    sources: tuple[ComparisonSource, ...]
    held_out: tuple[ComparisonSource, ...] = ()  # judged, never trained on
    layout: Layout = "v3"

    def __post_init__(self) -> None:
        names = [source.name for source in self.held_out]
        if not self.sources or len(set(names)) < len(names):
            raise ConfigError(f"expected some sources, and each name of held_out={names} once")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRun(Tuning):
    """A run over comparisons: `batch` counts those, and `seq_len` is the longest answer's."""

    data: ComparisonData
    epochs: float = 1.0  # over all comparisons; `tokens` is a ceiling

    def __post_init__(self) -> None:
        Tuning.__post_init__(self)
        if not 0 < self.epochs < math.inf:
            raise ConfigError(f"epochs={self.epochs}, expected a number above 0")


class Example(NamedTuple):
    """One comparison in tokens."""

    number: int  # among all of the run, those held out included
    sequences: tuple[Encoded, ...]
    good: bool

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence.tokens) for sequence in self.sequences)


def lay_out(examples: Sequence[Example]) -> Batch:
    """All sequences of the examples in order, with the answers' tokens as labels."""
    sequences = [sequence for example in examples for sequence in example.sequences]
    labels = []
    for tokens, trained in sequences:
        following = zip(tokens[1:], trained[1:], strict=True)
        labels.append([*(token if learned else IGNORE for token, learned in following), IGNORE])
    return Batch.from_sequences([sequence.tokens for sequence in sequences], labels)


def groups(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """The examples in order, `size` at a time."""
    yield from (examples[start : start + size] for start in range(0, len(examples), size))


class ComparisonObjective(ABC):
    """What stages over comparisons have in common; each says what a piece is."""

    mtp = False

    def __init__(self, run: ComparisonRun, model: DeepSeekV3, tokenizer: Tokenizer, answers: int):
        """`answers` (1 or 2) of a comparison are compared; see `_examples`."""
        self.run, self.model, self.tokenizer = run, model, tokenizer
        numbers = itertools.count()
        self.examples = [
            example
            for source in run.data.sources
            for example in _examples(source, run, tokenizer, answers, numbers)
        ]
        self.held_out = {
            source.name: list(_examples(source, run, tokenizer, answers, numbers))
            for source in run.data.held_out
        }
        self.tokens = run.epochs * sum(example.num_tokens for example in self.examples)
        self.epoch, self.position = 0, 0

    @abstractmethod
    def piece(self, examples: Sequence[Example]) -> Piece:
        """Some examples as work."""

    @property
    def every_example(self) -> list[Example]:
        """Those to learn and those held out, in the order of their numbers."""
        return [*self.examples, *itertools.chain(*self.held_out.values())]

    def draw(self, passes: int) -> Sequence[Piece]:
        """So many micro-batches of whole examples."""
        size = self.run.batch.micro_sequences
        return [self.piece([self._next() for _ in range(size)]) for _ in range(passes)]

    def _next(self) -> Example:
        if self.position == len(self.examples):
            self.epoch, self.position = self.epoch + 1, 0
        rng = np.random.default_rng([self.run.seed, self.epoch])
        order = rng.permutation(len(self.examples))
        self.position += 1
        return self.examples[int(order[self.position - 1])]

    def evaluate(self, step: int, tokens: int) -> Iterator[Measure]:
        """The mean loss and figures of every held-out source."""
        for name, examples in self.held_out.items():
            sums, units = defaultdict[str, float](float), defaultdict[str, float](float)
            for group in groups(examples, self.run.batch.micro_sequences):
                piece = self.piece(group)
                batch = piece.batch.to(self.model.lm_head.weight.device)
                with torch.no_grad():
                    found = piece.score(self.model(batch), batch, balance=False)
                figures = {"loss": (found.main.item(), piece.weight), **found.figures}
                for figure, (value, unit) in figures.items():
                    sums[figure] += value
                    units[figure] += unit
            for figure, unit in units.items():
                if unit:
                    value = sums[figure] / unit
                    yield Measure(step=step, tokens=tokens, name=f"{name}/{figure}", value=value)

    def probe(self) -> Probe | None:
        """The first answers of the first held-out source."""
        for name, examples in self.held_out.items():
            return Probe(name, [example.sequences[0].tokens for example in examples])
        return None

    def publish(self, folder: Path) -> None:
        """Write the model folder."""
        lora.save(self.model, folder)
        self.tokenizer.save(folder)

    def place(self) -> dict[str, object]:
        """How much of which epoch is read."""
        return {"epoch": self.epoch, "position": self.position, "examples": len(self.examples)}

    def go_to(self, place: Mapping[str, object]) -> None:
        """Go on from there.

        Raises:
            DataError: the data are not those the place is in.
        """
        if place["examples"] != len(self.examples):
            raise DataError(
                f"the run began with {place['examples']} comparisons, now there are "
                f"{len(self.examples)}; give it the data it was started with, or start it anew"
            )
        self.epoch, self.position = int(str(place["epoch"])), int(str(place["position"]))

    def tensors(self) -> dict[str, Tensor]:
        """None beside the optimizer's."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what a stage keeps beside."""
        assert not self.tensors().keys() - tensors.keys()


def _examples(
    source: ComparisonSource,
    run: ComparisonRun,
    tokenizer: Tokenizer,
    answers: int,
    numbers: Iterator[int],
) -> Iterator[Example]:
    """The comparisons of a source in tokens, but for those longer than seq_len.

    Where single answers are wanted (1), a pair is two: a good one and one that is not.
    """
    comparisons, report = _comparisons(source, run.seed)
    kept = 0
    for comparison in comparisons:
        encoded = [
            encode_answer(comparison.prompt, answer, tokenizer, run.data.layout)
            for answer in comparison.answers
        ]
        if len(encoded) < answers:
            report.drop("a single answer", source.name)
        elif max(len(one.tokens) for one in encoded) > run.batch.seq_len:
            report.drop(f"more than seq_len={run.batch.seq_len} tokens", source.name)
        elif answers == len(encoded):
            kept += 1
            yield Example(next(numbers), tuple(encoded), comparison.good)
        else:
            kept += 1
            for one, good in zip(encoded, (True, False), strict=True):
                yield Example(next(numbers), (one,), good)
    if report.dropped:
        logger.warning("%s: %s", source.name, report.summary())
    if not kept:
        raise DataError(
            f"source {source.name!r} holds no comparison to learn from: {report.summary()}"
        )


def _comparisons(source: ComparisonSource, seed: int) -> tuple[Iterator[Comparison], DropReport]:
    report = DropReport()
    if source.rows is not None:
        return read_comparisons(source.rows, report), report
    assert source.shipped is not None
    stories = corpus.stories(source.split)
    if source.kind == "endings":
        return ending_pairs(stories, seed, source.shipped), report
    requests = Requests(corpus.stories("train"))
    return subject_pairs(stories, requests, seed, source.shipped), report
