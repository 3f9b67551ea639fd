"""What a run writes down as it goes: ``metrics.jsonl``, and the same figures for TensorBoard.

A line is written whole and flushed, so a run that is killed loses at most the line it was writing.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from abyssal.train.history import (
    NAME,
    Drift,
    End,
    Evaluation,
    Event,
    Examination,
    Load,
    Measure,
    Reference,
    Reinforce,
    Sample,
    Start,
    Step,
)

Row = (
    Start
    | Step
    | Load
    | Evaluation
    | Measure
    | Drift
    | Reference
    | Reinforce
    | Examination
    | Event
    | Sample
    | End
)

_KINDS: dict[type, str] = {
    Start: "start",
    Step: "step",
    Load: "load",
    Evaluation: "eval",
    Measure: "measure",
    Drift: "drift",
    Reference: "reference",
    Reinforce: "reinforce",
    Examination: "exam",
    Event: "event",
    Sample: "sample",
    End: "end",
}


class Journal:
    """Append rows to a run folder."""

    def __init__(self, folder: Path, told: Callable[[Row], None] | None = None):
        """Whoever is `told` gets each row as well."""
        self._told = told
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self.file = path.open("a", encoding="utf-8")
        if torn:  # by a kill in mid-line: the next row starts a line of its own
            self.file.write("\n")
        self.board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: Row) -> None:
        """Append one row, and draw its figures."""
        line = {"kind": _KINDS[type(row)], **dataclasses.asdict(row)}
        self.file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        self.file.flush()
        if self._told is not None:
            self._told(row)
        if isinstance(row, Step | Reinforce):
            stem = "train" if isinstance(row, Step) else "reinforce"
            values = dataclasses.asdict(row)
            for name, value in (values.pop("figures", {}) | values).items():
                if value is not None and name not in ("step", "tokens"):
                    self.board.add_scalar(f"{stem}/{name}", value, row.step)
        elif isinstance(row, Evaluation):
            self.board.add_scalar(f"held_out/{row.name}", row.bits_per_byte, row.step)
        elif isinstance(row, Measure):
            self.board.add_scalar(f"held_out/{row.name}", row.value, row.step)
        elif isinstance(row, Examination):
            self.board.add_scalar(f"examined/{row.name}", row.right / row.asked, row.step)

    def close(self) -> None:
        """Finish both files."""
        self.file.close()
        self.board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Unwritten(Journal):
    """What a process writes to that is not the first of its run: nowhere."""

    def __init__(self) -> None:
        """Open nothing."""

    def write(self, row: Row) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Nothing is open."""
