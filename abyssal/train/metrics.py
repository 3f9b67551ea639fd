"""A training run read back: ``metrics.jsonl`` as typed rows, with the detours taken out.

The trainer appends one JSON object a line and never goes back. A run that was interrupted repeats
steps, so the file holds abandoned futures as well: **a step takes the place of every row of its own
or a later step that was written before it.** What remains is the one path that led to the weights.
"""

import json
import logging
import types
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Protocol, TypeVar, get_args, get_origin, get_type_hints

from abyssal.config import ModelConfig
from abyssal.errors import DataError
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

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Metrics:
    """One run's rows, each kind in the order of its steps."""

    name: str  # of the run's folder
    config: ModelConfig | None = None
    start: Start | None = None  # the latest one
    steps: list[Step] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    reinforcements: list[Reinforce] = field(default_factory=list)
    examinations: list[Examination] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)  # as written: detours are part of the story
    samples: list[Sample] = field(default_factory=list)
    end: End | None = None
    unreadable: int = 0  # broken lines, the last one not counted

    def tokens_at(self, step: int) -> int:
        """Tokens seen after a step, or after the last recorded one before it."""
        at = bisect_right(self.steps, step, key=lambda row: row.step)
        return self.steps[at - 1].tokens if at else 0


def read_metrics(folder: str | Path) -> Metrics:
    """The rows of a run folder; a line torn by a crash at the end of the file is left out.

    Raises:
        DataError: the folder has no metrics.jsonl, or a row lacks a value or has a wrong one.
        ConfigError, CheckpointError: the model configuration it names is none.
    """
    path = Path(folder) / NAME
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        raise DataError(
            f"{path}: no such file; expected a run folder with the {NAME} that training writes"
        ) from None
    metrics = Metrics(name=path.resolve().parent.name)
    for number, row in _rows(lines, metrics):
        _add(metrics, row, f"{path}, line {number}")
    if metrics.start is None and not metrics.steps:
        raise DataError(f"{path} records no start and no step; let the run take a step first")
    if metrics.unreadable:
        log.warning("%s: %d broken lines were left out", path, metrics.unreadable)
    if metrics.start is not None and metrics.start.config is not None:
        metrics.config = ModelConfig.from_dict(metrics.start.config)
    elif (Path(folder) / "config.json").is_file():
        metrics.config = ModelConfig.load(folder)
    return metrics


def _rows(lines: list[bytes], metrics: Metrics) -> Iterator[tuple[int, dict[str, object]]]:
    """Line numbers and objects; broken lines are counted, but for the last."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            row = None
        if isinstance(row, dict):
            yield number, row
        elif number < len(lines):
            metrics.unreadable += 1


def _add(metrics: Metrics, row: dict[str, object], where: str) -> None:
    match row.get("kind"):
        case "start":
            metrics.start = _read(Start, row, where)
        case "step":
            step = _read(Step, row, where)
            _abandon(metrics, step.step)
            metrics.steps.append(step)
        case "load":
            load = _read(Load, row, where)
            _check_shape(load, metrics.loads, where)
            _put(metrics.loads, load, lambda old: old.step == load.step)
        case "eval":
            new = _read(Evaluation, row, where)
            same = (new.step, new.name)
            _put(metrics.evaluations, new, lambda old: (old.step, old.name) == same)
        case "measure":
            measure = _read(Measure, row, where)
            named = (measure.step, measure.name)
            _put(metrics.measures, measure, lambda old: (old.step, old.name) == named)
        case "drift":
            drift = _read(Drift, row, where)
            text = (drift.step, drift.name)
            _put(metrics.drifts, drift, lambda old: (old.step, old.name) == text)
        case "reference":
            metrics.references.append(_read(Reference, row, where))
        case "reinforce":
            drawn = _read(Reinforce, row, where)
            _put(metrics.reinforcements, drawn, lambda old: old.step == drawn.step)
        case "exam":
            exam = _read(Examination, row, where)
            both = (exam.step, exam.name)
            _put(metrics.examinations, exam, lambda old: (old.step, old.name) == both)
        case "event":
            metrics.events.append(_read(Event, row, where))
        case "sample":
            sample = _read(Sample, row, where)
            key = (sample.step, sample.prompt)
            _put(metrics.samples, sample, lambda old: (old.step, old.prompt) == key)
        case "end":
            metrics.end = _read(End, row, where)
        case other:
            log.warning("%s: rows of kind %r are unknown and left out", where, other)


def _check_shape(new: Load, before: list[Load], where: str) -> None:
    shape = [len(shares) for shares in new.load]
    expected = [len(shares) for shares in before[0].load] if before else shape[:1] * len(shape)
    if not shape or 0 in shape or shape != expected:
        raise DataError(
            f"{where}: load has rows of {shape} experts, expected {expected or 'at least one'}: "
            "the same for every layer and step; remove the line"
        )


def _abandon(metrics: Metrics, step: int) -> None:
    """Forget what an earlier life of the run wrote about this step's future."""
    metrics.end = None
    _cut(metrics.steps, step - 1)
    _cut(metrics.loads, step)
    _cut(metrics.evaluations, step)
    _cut(metrics.measures, step)
    _cut(metrics.drifts, step)
    _cut(metrics.samples, step)
    _cut(metrics.reinforcements, step)
    _cut(metrics.examinations, step)


_KINDS: dict[type, dict[str, object]] = {
    cls: get_type_hints(cls)
    for cls in (
        Start,
        Step,
        Load,
        Evaluation,
        Measure,
        Drift,
        Reference,
        Reinforce,
        Examination,
        Event,
        Sample,
        End,
    )
}


class _Stepped(Protocol):
    @property
    def step(self) -> int: ...


Row = TypeVar("Row")
SteppedRow = TypeVar("SteppedRow", bound=_Stepped)


def _cut(rows: list[SteppedRow], last: int) -> None:
    """Drop the rows after step `last`; rows stand in the order of their steps."""
    while rows and rows[-1].step > last:
        rows.pop()


def _put(rows: list[SteppedRow], new: SteppedRow, is_same: Callable[[SteppedRow], bool]) -> None:
    """Append a row in place of the one it repeats, if any, and keep the order of steps."""
    at = len(rows)
    while at and rows[at - 1].step >= new.step:
        at -= 1
        if is_same(rows[at]):
            rows[at] = new
            return
    rows.insert(bisect_right(rows, new.step, key=lambda row: row.step), new)


def _read(cls: type[Row], row: Mapping[str, object], where: str) -> Row:
    """The row as its dataclass; keys it does not know are left alone."""
    kinds = _KINDS[cls]
    values: dict[str, object] = {}
    for one in fields(cls):  # type: ignore[arg-type]
        if one.name in row:
            values[one.name] = _value(kinds[one.name], row[one.name], f"{where}: {one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise DataError(f"{where}: a {row['kind']} row without {one.name!r}; remove the line")
    return cls(**values)


def _value(kind: object, value: object, where: str) -> object:
    """A JSON value as the annotated type wants it."""
    origin = get_origin(kind)
    if origin is types.UnionType:
        return None if value is None else _value(get_args(kind)[0], value, where)
    if origin is tuple and isinstance(value, list):
        inner = get_args(kind)[0]
        return tuple(_value(inner, item, where) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if kind is float:
            return float(value)
        if kind is int and float(value).is_integer():
            return int(value)
    plain = origin or kind
    if plain in (str, bool, dict) and isinstance(value, plain):
        return value
    raise DataError(f"{where} is {value!r}, expected {kind}; remove the line")
