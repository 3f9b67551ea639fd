"""The curves of a training run, from the metrics.jsonl of a folder that anybody may have made.

train/history.py has the rows. Here they are read for a picture: at most so many bytes of the file,
and of it only numbers that are finite under names that can be shown. Of a larger file evenly spaced
pieces are read, its beginning and its end among them. Whatever is no row is passed over.

As in train/metrics.py, a step takes the place of every row of its own or a later step that was
written before it: an interrupted run repeats some.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

NAME = "metrics.jsonl"

MOST_POINTS = 400  # of a curve
MOST_CURVES = 64
MOST_BYTES = 4 * 2**20  # of the file, which take a second at most
MOST_LINE_BYTES = 2**20
EDGE_BYTES = 256 * 2**10  # of a file that is larger, at its beginning and at its end ...
PIECES = 512  # ... and pieces between
MOST_NAME_CHARS = 80

_NO_FIGURES = {"kind", "step", "tokens", "batch_tokens", "elapsed_s", "figures"}  # of a step

Curves = dict[str, list[tuple[float, float]]]  # name -> (tokens, or steps where they lack, value)


class _Point(NamedTuple):
    step: float
    place: float
    value: float


class _Curve:
    """Points as they come, thinned out so that there are never more than twice MOST_POINTS."""

    def __init__(self) -> None:
        self._kept: list[_Point] = []
        self._last: list[_Point] = []  # the one behind them, if it is not among them
        self._stride, self._since = 1, 0  # one in so many is kept; how many came since
        self._end: float | None = None  # the latest step

    def add(self, point: _Point) -> None:
        """Take in a point, in place of those of its step or a later one."""
        if self._end is not None and point.step <= self._end:
            self.cut(point.step)
        self._end = point.step
        self._since += 1
        if self._kept and self._since < self._stride:
            self._last = [point]
            return
        self._kept.append(point)
        self._last, self._since = [], 0
        if len(self._kept) > 2 * MOST_POINTS:
            self._kept = self._kept[::2]
            self._stride *= 2

    def cut(self, step: float) -> None:
        """Forget the points of this step and of later ones."""
        for points in (self._last, self._kept):
            while points and points[-1].step >= step:
                points.pop()

    def points(self) -> list[tuple[float, float]]:
        """At most MOST_POINTS of them, the first and the last among them."""
        found = [(point.place, point.value) for point in (*self._kept, *self._last)]
        count = len(found)
        if count <= MOST_POINTS:
            return found
        return [found[i * (count - 1) // (MOST_POINTS - 1)] for i in range(MOST_POINTS)]


def read_curves(path: Path) -> Curves:
    """The curves of a metrics.jsonl; those of the stage's own figures and held-out texts as well.

    Raises:
        OSError: the file cannot be read.
    """
    curves: dict[str, _Curve] = {}
    latest = -math.inf  # step
    for line in _lines(path):
        row = _row(line)
        step = None if row is None else _number(row.get("step"))
        if row is None or step is None:
            continue
        if row.get("kind") == "step":
            if step <= latest:
                for curve in curves.values():
                    curve.cut(step)
            latest = step
        tokens = _number(row.get("tokens"))
        for name, value in _values(row):
            number = _number(value)
            if number is None or (name not in curves and len(curves) >= MOST_CURVES):
                continue
            point = _Point(step, step if tokens is None else tokens, number)
            curves.setdefault(name, _Curve()).add(point)
    return {name: points for name, curve in curves.items() if (points := curve.points())}


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of the file; torn ones, where a piece begins or ends, are no JSON."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= MOST_BYTES:
            yield from file.read(MOST_BYTES).split(b"\n")
            return
        yield from file.read(EDGE_BYTES).split(b"\n")
        piece, between = (MOST_BYTES - 2 * EDGE_BYTES) // PIECES, size - 2 * EDGE_BYTES
        for i in range(PIECES):
            file.seek(EDGE_BYTES + i * between // PIECES)
            yield from file.read(piece).split(b"\n")
        file.seek(size - EDGE_BYTES)
        yield from file.read(EDGE_BYTES).split(b"\n")


def _row(line: bytes) -> dict[str, object] | None:
    if len(line) > MOST_LINE_BYTES:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _values(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The names and values of a row; all but those of steps say what they are of."""
    kind, name = row.get("kind"), row.get("name")
    if kind == "step":
        figures = row.get("figures")
        yield from _named("", {k: v for k, v in row.items() if k not in _NO_FIGURES})
        yield from _named("", figures if isinstance(figures, dict) else {})
    elif kind == "reinforce":
        yield from _named("reinforce/", {k: v for k, v in row.items() if k not in _NO_FIGURES})
    elif kind in ("eval", "measure") and isinstance(name, str):
        yield from _named("held_out/", {name: row.get("bits_per_byte", row.get("value"))})
    elif kind == "exam" and isinstance(name, str):
        right, asked = _number(row.get("right")), _number(row.get("asked"))
        if right is not None and asked:
            yield from _named("examined/", {name: right / asked})


def _named(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if 0 < len(name) <= MOST_NAME_CHARS and name.isprintable():
            yield prefix + name, value


def _number(value: object) -> float | None:
    """A number that JSON can carry; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 2**63 else None  # which no infinity is, and no nan
