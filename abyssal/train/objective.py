"""What a stage brings to the one loop: pieces of work, how they are scored, and what it leaves.

    draw -> pass -> score -> step         the loop of trainer.py, whatever the stage
    text.py    preference.py    reward_model.py    distill.py        the objectives

T tokens of a batch
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from abyssal.batch import Batch
from abyssal.model.transformer import DeepSeekV3, Output
from abyssal.train.history import Evaluation, Examination, Measure, Sample
from abyssal.train.loss import Losses


class Piece(Protocol):
    """One micro-batch: what goes through the model, and what comes of it."""

    @property
    def batch(self) -> Batch:
        """The tokens (T,), on the CPU."""

    @property
    def weight(self) -> int:
        """How many tokens or pairs the piece scores; a step's loss is the mean over all of them."""

    def score(self, output: Output, batch: Batch, *, balance: bool) -> Losses:
        """The sums over the piece; `batch` is its own on the model's device."""


class Probe(NamedTuple):
    """Held-out text to send through a model before and after."""

    name: str
    sequences: list[list[int]]


class Objective(Protocol):
    """What a run is about. Its state is its place in the data and perhaps some tensors."""

    mtp: bool  # whether the MTP modules run and learn
    tokens: float  # in all the data there is; inf where data repeat for as long as a run lasts

    @property
    def model(self) -> DeepSeekV3:
        """The working copy, which steps move."""

    def draw(self, passes: int) -> Sequence[Piece]:
        """The pieces of the next step."""

    def evaluate(
        self, step: int, tokens: int
    ) -> Iterator[Evaluation | Measure | Examination | Sample]:
        """How the model does on what it is not trained on."""

    def probe(self) -> Probe | None:
        """Held-out text to measure drift on, if the recipe names any."""

    def publish(self, folder: Path) -> None:
        """Write what the run is for."""

    def place(self) -> dict[str, object]:
        """Where in the data the run is, as JSON knows it."""

    def go_to(self, place: Mapping[str, object]) -> None:
        """Go on from such a place."""

    def tensors(self) -> dict[str, Tensor]:
        """What else must survive a restart."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take that back; other names may stand beside."""
