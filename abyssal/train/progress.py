"""How far a run has come: what every loop counts, saves and goes on from.

    OUT/trainer/step-*    masters, moments, gate biases; counters, the guard's memory

A loop adds what is its own to `state` and takes it back in `restore`. A resumed run takes the steps
that the uninterrupted one would have taken, bit for bit.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from abyssal.checkpoint import state
from abyssal.checkpoint.state import State
from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import history
from abyssal.train.guard import Guard, GuardRules, Verdict
from abyssal.train.journal import Journal
from abyssal.train.machine import Machine, peak_memory_bytes, peak_rss_bytes
from abyssal.train.optim import Optim, Optimizer

logger = logging.getLogger(__name__)

LOAD_EVERY = 20  # steps between two rows of expert load
REWINDS = 3  # to one saved state, before the run gives up


class Plan(Protocol):
    """The dataclass of a stage, as far as any loop is concerned."""

    @property
    def out(self) -> Path:
        """What becomes the model folder."""

    @property
    def optim(self) -> Optim:
        """How weights move."""

    @property
    def guard(self) -> GuardRules:
        """When a step counts as bad."""

    @property
    def keep(self) -> int:
        """How many states stay."""


class Progress(ABC):
    """A model on its way: its optimizer, its guard, and how much they have seen."""

    what = "step"  # the guard judges

    def __init__(self, plan: Plan, model: DeepSeekV3, machine: Machine, *, zero: int = 0):
        """`model` is the working copy (trainer.py), which steps move; `zero` is that of run.py."""
        self.root = plan.out / "trainer"  # where states are saved while the run lasts
        self.keep, self.machine, self.model = plan.keep, machine, model
        self.ranks = machine.ranks
        self.optimizer = Optimizer(model, plan.optim, self.ranks, is_shared=zero == 1)
        self.guard = Guard(plan.guard)
        self.step, self.tokens, self.elapsed_s = 0, 0, 0.0
        self.rewinds = 0  # since the last saved state
        self.peak_memory_bytes: int | None = None  # known at the end
        self.stopped_by: int | None = None  # the signal that ended `steps()` early

    def state(self) -> State:
        """Everything the next step depends on."""
        tensors = self.optimizer.state()
        biases = enumerate(self.model.gates())
        tensors |= {f"bias.{i}": gate.e_score_correction_bias for i, gate in biases}
        values: dict[str, object] = {
            "optimizer_steps": self.optimizer.steps,
            "tokens": self.tokens,
            "elapsed_s": self.elapsed_s,
            "dtype": str(self.machine.dtype),
            "guard": self.guard.state(),
        }
        return State(self.step, tensors, values)

    def restore(self, saved: State) -> None:
        """Take back what `state` gave, in this run or in one that was interrupted.

        Raises:
            ConfigError: it was trained in another precision.
        """
        values = saved.values
        if values["dtype"] != str(self.machine.dtype):
            raise ConfigError(
                f"{self.root} was trained in {values['dtype']}, this machine would go on in "
                f"{self.machine.dtype}; set precision to what it was"
            )
        self.step, self.tokens = saved.step, int(str(values["tokens"]))
        self.elapsed_s = float(str(values["elapsed_s"]))
        self.optimizer.restore(saved.tensors, int(str(values["optimizer_steps"])))
        for i, gate in enumerate(self.model.gates()):
            gate.e_score_correction_bias.copy_(saved.tensors[f"bias.{i}"])
        guard = values["guard"]
        assert isinstance(guard, dict)
        self.guard.restore(guard)

    def save(self) -> None:
        """Publish the state, which is that of one process however many there are."""
        saved, fetch = self.state(), self.optimizer.fetch
        if self.ranks.is_first:
            state.save(self.root, *saved, self.keep, fetch)
        else:
            for name, tensor in saved.tensors.items():
                fetch(name, tensor)
        self.rewinds = 0

    def resume(self) -> bool:
        """Go on from the newest saved state, if there is one."""
        saved = state.latest(self.root)
        if saved is not None:
            self.restore(saved)
        return saved is not None

    # Bad steps

    def refuse(self, verdict: Verdict, detail: str, remedy: str, journal: Journal) -> None:
        """Drop a bad step; after too many, go back to the last state but on with fresh data.

        Raises:
            ConfigError: there is none, or it led here too often.
        """
        self.optimizer.clear()
        logger.warning("step %d: %s skipped: %s", self.step + 1, self.what, detail)
        journal.write(history.Event(step=self.step, what=f"{self.what} skipped", detail=detail))
        if verdict is not Verdict.REWIND:
            return
        saved = state.latest(self.root)
        self.rewinds += 1
        if saved is None or self.rewinds > REWINDS:
            often = "again and again" if saved else "with no saved state to go back to"
            raise ConfigError(
                f"training diverged at step {self.step + 1} ({detail}), {often}; {remedy}"
            )
        place = self.place()  # the data goes on: the same would fail again
        self.restore(saved)
        self.go_to(place)
        journal.write(history.Event(step=saved.step, what="rewind", detail=detail))

    @abstractmethod
    def place(self) -> dict[str, object]:
        """Where the data stands, for `go_to` and for a state."""

    @abstractmethod
    def go_to(self, place: Mapping[str, object]) -> None:
        """Go on with the data from there."""

    # What is written down

    def write_load(self, load: Tensor, journal: Journal) -> None:
        """Write down now and then where the tokens of a step went: load (L, E)."""
        if self.step % LOAD_EVERY == 0 and len(load):
            shares = (load / load.sum(-1, keepdim=True)).tolist()
            rows = tuple(tuple(round(x, 5) for x in row) for row in shares)
            journal.write(history.Load(step=self.step, tokens=self.tokens, load=rows))

    def end(self) -> None:
        """Look at what training took, before anything is published; all ranks do."""
        self.peak_memory_bytes = peak_memory_bytes(self.machine)

    def write_end(self, journal: Journal) -> None:
        """Write down that the run finished."""
        journal.write(
            history.End(
                step=self.step,
                tokens=self.tokens,
                elapsed_s=self.elapsed_s,
                peak_rss_bytes=peak_rss_bytes(),
                peak_memory_bytes=self.peak_memory_bytes,
                world=self.ranks.world,
            )
        )
