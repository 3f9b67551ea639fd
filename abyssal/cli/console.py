"""Everything a person sees: tables, numbers with units, progress, and the one red line of an error.

Results go to standard output, all else to standard error, so that a pipe carries results only.
Color and progress vanish where the output is no terminal.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from abyssal.train.stopping import Stopping

_QUIET_S = 30  # between two lines of progress where there is no terminal
_UNWRAPPED = 10_000  # columns
# What a model writes must not steer the terminal: control characters but tab and line break.
_HARMLESS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)
_SI = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")


@cache
def out() -> Console:
    """Where results go; a pipe gets lines as long as they are."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNWRAPPED)


@cache
def err() -> Console:
    """Where notes, progress and errors go."""
    return Console(stderr=True, highlight=False)


# Results


def show(result: object, *, as_json: bool, title: str = "") -> None:
    """A dataclass or mapping: for people a table of names and values, or one JSON object.

    Units are read off the names (``_bytes``, ``_flops``, ``_s``, ``_ms``, ``_dollars``). A table
    inside the result gets a table of its own below.
    """
    plain = _plain(result)
    if as_json:
        _print_json(plain)
        return
    assert isinstance(plain, dict), "a result is a dataclass or a mapping"
    flat = {name: value for name, value in plain.items() if not isinstance(value, dict)}
    if flat:
        table(title, ("", ""), [(name, written(name, value)) for name, value in flat.items()])
    for name, value in plain.items():
        if isinstance(value, dict):
            show(value, as_json=False, title=name)


def show_json(result: object) -> None:
    """One JSON object on one line; numbers that are not finite become null, as JSON has none."""
    _print_json(_plain(result))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without frames: first column left, the others right."""
    grid = Table(
        title=escape(title) or None,
        title_justify="left",
        title_style="bold",
        show_header=any(header),
        header_style="dim",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for i, name in enumerate(header):
        grid.add_column(escape(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(escape, row))
    out().print(grid)


def say(text: str) -> None:
    """A line of result as it stands, never wrapped."""
    out().print(text, markup=False, soft_wrap=True)


def write(text: str) -> None:
    """The next piece of a text that comes bit by bit; a terminal gets no control characters."""
    print(harmless(text) if sys.stdout.isatty() else text, end="", flush=True)


def harmless(text: str) -> str:
    """The text with control characters shown as pictures, tabs and line breaks as they are."""
    return text.translate(_HARMLESS)


# Remarks


def murmur(text: str) -> None:
    """The next piece of a remark that comes bit by bit."""
    err().print(harmless(text), markup=False, soft_wrap=True, style="dim", end="")


@contextmanager
def folded(what: str) -> Iterator[Callable[[str], None]]:
    """A line that changes while something goes on, then vanishes; nothing without a terminal."""
    status = err().status(escape(what))
    with status:
        yield lambda text: status.update(escape(text))


def note(text: str) -> None:
    """A remark beside the results."""
    err().print(text, markup=False, soft_wrap=True, style="dim")


def fail(problem: Exception) -> None:
    """The one red line of an error."""
    line = " ".join(str(problem).splitlines())
    err().print(f"error: {line}", markup=False, soft_wrap=True, style="red")


class Bar(Protocol):
    """A bar on its way."""

    def at(self, done: float, *, total: float, note: str) -> None:
        """Stand at `done` of `total`, with a few figures beside."""


class _Nothing:
    """The bar where a panel is."""

    def at(self, done: float, *, total: float, note: str) -> None:
        """Nothing."""


class _Silent:
    """The bar where there is no terminal: a line every half minute."""

    def __init__(self, what: str) -> None:
        self.what, self.began, self.said = what, time.monotonic(), time.monotonic()

    def at(self, done: float, *, total: float, note: str) -> None:
        """Say where things stand, now and then."""
        now = time.monotonic()
        if now - self.said >= _QUIET_S and done > 0:
            self.said = now
            left_s = (now - self.began) * (total - done) / done
            text = f"{self.what}: {done / total:.0%}  {note}  {duration(left_s)} left"
            err().print(text, markup=False, soft_wrap=True)


@contextmanager
def resumable() -> Iterator["Stopping"]:
    """A loop that leaves at a signal; the command then ends with 128 + the signal's number."""
    from typer import Exit

    from abyssal.train.stopping import Stopping

    with Stopping() as stopping:
        yield stopping
    if stopping.signal is not None:
        note("stopped; run the same command to go on")
        raise Exit(128 + stopping.signal)


@contextmanager
def progress(what: str, total: float, *, drawn: bool = True) -> Iterator[Bar]:
    """A bar with figures and the time left; without a terminal, a line now and then.

    Without `drawn`, a terminal shows nothing: something else is drawn there.
    """
    if not err().is_terminal:
        yield _Silent(what)
        return
    if not drawn:
        yield _Nothing()
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err()) as bars:
        task = bars.add_task(escape(what), total=total, note="")

        class _Drawn:
            def at(self, done: float, *, total: float, note: str) -> None:
                bars.update(task, completed=done, total=total, note=escape(note))

        yield _Drawn()


@contextmanager
def live() -> Iterator[Callable[[RenderableType], None] | None]:
    """What shows a panel in the place of the one before it; None without a terminal."""
    if not err().is_terminal:
        yield None
        return
    from rich.live import Live

    with Live(console=err(), auto_refresh=False) as shown:
        yield lambda panel: shown.update(panel, refresh=True)


# Numbers


def number(value: float) -> str:
    """``671,026,419,200``; four digits that matter where it is not whole: ``0.02741``."""
    if value == value // 1 and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def quantity(value: float, unit: str) -> str:
    """A value with an SI prefix: ``671 G``, ``250.5 GFLOP``, ``70.27 kB`` (k is 1000)."""
    size, power = abs(value), 0
    while size >= 999.95 and power < len(_SI) - 1:
        size, power = size / 1000, power + 1
    text = f"{math.copysign(size, value):.4g}"
    return f"{text} {_SI[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """``0.0312 s``, ``45.2 s``, ``12 min 03 s``, ``3 h 20 min``, ``57 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24:,} d {hours % 24} h"


def written(name: str, value: object) -> str:
    """A value as a person reads it; the end of its name says the unit."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    words = name.split("_")
    if "bytes" in words:
        return quantity(value, "B")
    if "flops" in words:
        return quantity(value, "FLOP")
    if "dollars" in words:
        return f"${value:,.2f}"
    if words[-1] == "ms":
        return f"{number(value)} ms"
    if words[-1] == "s" and "per" not in words:
        return duration(value)
    return number(value)


# JSON


def _plain(value: object) -> object:
    """Dataclasses, paths and tuples as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _print_json(plain: object) -> None:
    finite = json.loads(json.dumps(plain), parse_constant=lambda name: None)
    print(json.dumps(finite, ensure_ascii=False, allow_nan=False))
