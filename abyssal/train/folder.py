"""A run's folder: whose it is, in which precision it began, and whether it is done.

    OUT/    the model folder    recipe.json    metrics.jsonl    tensorboard/    report.html
            trainer/ (while the run lasts)    done.json (afterwards)

What a stage needs from beginning to end, whatever its loop:

    folder = RunFolder(run, "sft", where="tiny/chat")   # refuses a folder of another run
    folder.is_done                                       # an earlier call took it to its end
    machine = measure(folder.precision())                # as the run began, where it has begun
    folder.open(machine)                                 # makes the folder, says whose it is
    with Journal(folder.path) as journal:
        folder.introduce(journal, model.config, machine) # the Start row, once a life
        ...                                              # states go to folder.states
    folder.complete(step, tokens)                        # report.html, done.json, no states
"""

import dataclasses
import datetime
import json
import shutil
from pathlib import Path
from typing import Protocol

from abyssal.checkpoint import files
from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.count import count
from abyssal.train import history
from abyssal.train.journal import Journal
from abyssal.train.machine import Machine
from abyssal.train.report import write_report

_RECIPE, _DONE = "recipe.json", "done.json"
_FREE = {"out", "keep", "save_every", "eval_every", "samples", "zero"}  # keys that decide no weight


class Placed(Protocol):
    """The dataclass of a stage, as far as its folder is concerned."""

    @property
    def out(self) -> Path:
        """What becomes the model folder."""

    @property
    def precision(self) -> str:
        """Of matrix products, or "auto"."""


class RunFolder:
    """The folder of one run of a stage; `where` is what a person calls the recipe."""

    def __init__(self, run: Placed, stage: str, where: str):
        """Raises ConfigError where the folder holds another run, or what is no run's."""
        self.run, self.stage, self.where = run, stage, where
        self.path = run.out
        self.written = plain(run)  # the run as recipe.json has it
        self._check()

    @property
    def is_done(self) -> bool:
        """Whether an earlier call took this run to its end."""
        return (self.path / _DONE).is_file()

    @property
    def states(self) -> Path:
        """Where training states are saved while the run lasts."""
        return self.path / "trainer"

    def precision(self) -> str:
        """The recipe's; "auto" is decided once, for a busy machine may measure otherwise later."""
        if self.run.precision != "auto" or not (self.path / _RECIPE).is_file():
            return self.run.precision
        return str(files.read_json(self.path / _RECIPE).get("precision", "auto"))

    def open(self, machine: Machine) -> None:
        """Make the folder, and say in it whose it is."""
        precision = str(machine.dtype).removeprefix("torch.")
        about = {"stage": self.stage, "recipe": self.written, "precision": precision}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            files.publish_json(self.path / _RECIPE, about)
        except OSError as problem:
            raise ConfigError(
                f"out={self.path} cannot be written ({problem.strerror}); choose another folder"
            ) from None

    def introduce(self, journal: Journal, config: ModelConfig, machine: Machine) -> None:
        """Write down what runs here, and on what."""
        counts = count(config)
        journal.write(
            history.Start(
                stage=self.stage,
                recipe=self.written,
                config=config.to_dict(),
                params_total=counts.params_total,
                params_active=counts.params_active,
                machine=machine.description,
                world=machine.ranks.world,
                time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
        )

    def complete(self, step: int, tokens: int) -> None:
        """Write the report, mark the run as done, and let its states go."""
        write_report(self.path / "report.html", [self.path], self.where)
        files.publish_json(self.path / _DONE, {"step": step, "tokens": tokens})
        self.clear()

    def clear(self) -> None:
        """Remove the states."""
        shutil.rmtree(self.states, ignore_errors=True)

    def _check(self) -> None:
        """Refuse to mix this run with another one or with files that are not a run's."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out={self.path} is a file, expected a folder; choose another")
        there = self.path.iterdir() if self.path.exists() else ()
        if not any(path for path in there if not path.name.startswith(".")):
            return
        if not (self.path / _RECIPE).is_file():
            raise ConfigError(
                f"{self.path} holds files of no run; choose another out, or remove it"
            )
        before = files.read_json(self.path / _RECIPE).get("recipe")
        now = json.loads(json.dumps(self.written))
        if not isinstance(before, dict):
            raise ConfigError(f"{self.path / _RECIPE} holds no recipe; remove {self.path}")
        changed = sorted(k for k in now.keys() | before.keys() if now.get(k) != before.get(k))
        changed = [key for key in changed if key not in _FREE]
        if changed:
            raise ConfigError(
                f"{self.path} holds a run of another recipe ({', '.join(changed)} differ); "
                "choose "
                f"another out, or remove it"
            )


def plain(run: Placed) -> dict[str, object]:
    """The run as JSON has it."""
    written: dict[str, object] = json.loads(
        json.dumps(dataclasses.asdict(run), default=str)  # type: ignore[call-overload]
    )
    return written
