"""Reinforcement in the terminal: what an untouched model earns, and a run as it goes."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import typer

from abyssal.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from abyssal.train.history import Examination, Load, Reinforce, Sample
    from abyssal.train.reinforcement import Reinforcement

_BAR = 40  # characters of the longest bar of a histogram
_WIDTH = 48  # ... and of a history
_HEIGHTS = "▁▂▃▄▅▆▇█"


def show_look(run: "Reinforcement", as_json: bool) -> None:
    """The rewards of the untouched model as a histogram; ConfigError where they are all alike."""
    look = run.look()
    if as_json:
        console.show_json(look._asdict() | {"histogram": list(look.histogram.items())})
    else:
        most = max(look.histogram.values())
        rows = [
            (f"{reward:.3g}", f"{count:,}", "█" * max(1, round(_BAR * count / most)))
            for reward, count in look.histogram.items()
        ]
        console.table("rewards of the untouched model", ("reward", "answers", ""), rows)
        console.show(
            {
                "accuracy": f"{look.accuracy:.1%}",
                "format": f"{look.format:.1%}",
                "questions whose answers differ": f"{look.differing} of {look.questions}",
            },
            as_json=False,
        )
        console.say(f"\n{console.harmless(look.sample)}")
    look.check()


def watch(run: "Reinforcement") -> "Reinforce | None":
    """Follow a run to its end; a run stopped by a signal ends the command with 128 + its number."""
    if run.is_done:
        console.note(f"{run.folder} is done already")
        return None
    last = None
    panel = Panel(f"{run.where} {run.stage}", run.run.steps, run.run.minutes)
    run.told = panel.add
    with (
        console.live() as shown,
        console.progress(panel.what, panel.steps, drawn=shown is None) as bar,
    ):
        for last in run.steps():
            bar.at(last.step, total=panel.planned, note=panel.line())
            if shown is not None:
                shown(panel.drawn())
    if run.stopped_by is not None:
        console.note(f"stopped and saved in {run.folder}; run the same command to go on")
        raise typer.Exit(128 + run.stopped_by)
    return last


class Panel:
    """What a run has written down so far, as a person watches it."""

    def __init__(self, what: str, steps: int, minutes: float | None = None):
        self.what, self.steps, self.minutes = what, steps, minutes
        self._rows: list[Reinforce] = []
        self._exams: dict[str, list[Examination]] = {}
        self._load: Load | None = None
        self._sample: Sample | None = None
        self._elapsed_s = 0.0

    def add(self, row: object) -> None:
        """Remember a row of the journal, if it is of a kind that is shown."""
        from abyssal.train.history import Examination, Load, Reinforce, Sample, Step

        if isinstance(row, Reinforce):
            self._rows.append(row)
        elif isinstance(row, Examination):
            self._exams.setdefault(row.name, []).append(row)
        elif isinstance(row, Load):
            self._load = row
        elif isinstance(row, Sample):
            self._sample = row
        elif isinstance(row, Step):
            self._elapsed_s = row.elapsed_s

    @property
    def planned(self) -> float:
        """Steps of the whole run: no more than its minutes allow at the speed so far."""
        if self.minutes is None or not self._rows or not self._elapsed_s:
            return self.steps
        done = self._rows[-1].step
        return min(self.steps, max(done, done * 60 * self.minutes / self._elapsed_s))

    def line(self) -> str:
        """The latest step in a line."""
        if not self._rows:
            return ""
        row = self._rows[-1]
        exams = [
            f"{name} {some[-1].right / some[-1].asked:.0%}" for name, some in self._exams.items()
        ]
        parts = [f"reward {row.reward:.2f}", f"right {row.accuracy:.0%}", f"form {row.format:.0%}"]
        return "  ".join([*parts, f"length {row.length:.0f}", *exams])

    def drawn(self) -> "RenderableType":
        """Figures with their histories, the experts' load, and a sample."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from abyssal.evals.intervals import wilson

        grid = Table(box=None, pad_edge=False, show_header=False)
        for name, values, show in self._curves():
            if values:
                grid.add_row(name, Text(sparkline(values)), show.format(values[-1]))
        for name, exams in self._exams.items():
            shares = [exam.right / exam.asked for exam in exams]
            _, low, high = wilson(exams[-1].right, exams[-1].asked)
            said = f"{shares[-1]:.1%} ({low:.0%} to {high:.0%}) of {exams[-1].asked} held out"
            grid.add_row(name, Text(sparkline(shares)), said)
        done = self._rows[-1].step if self._rows else 0
        steps = f"{done:,} of {self.planned:,.0f} steps"
        head = f"{self.what}  {steps}  {console.duration(self._elapsed_s)}"
        parts: list[RenderableType] = [Text(head, style="bold"), grid]
        if self._load is not None:
            loads = " ".join(sparkline(layer) for layer in self._load.load)
            parts.append(Text(f"experts by layer  {loads}"))
        if self._sample is not None:
            text = f"{self._sample.prompt}\n{self._sample.text}"
            parts.append(Text(console.harmless(text), style="dim"))
        return Group(*parts)

    def _curves(self) -> list[tuple[str, list[float], str]]:
        """Name, history and notation of what has one."""
        rows = self._rows
        return [
            ("reward", [row.reward for row in rows], "{:.3f}"),
            ("right", [row.accuracy for row in rows], "{:.1%}"),
            ("form", [row.format for row in rows], "{:.1%}"),
            ("entropy", [row.entropy for row in rows], "{:.3f} nats"),
            ("distance (KL)", [row.kl for row in rows if row.kl is not None], "{:.4f} nats"),
            ("length", [row.length for row in rows], "{:.1f} tokens"),
            ("guesses right", [r.accepted for r in rows if r.accepted is not None], "{:.0%} (MTP)"),
            ("engine's gap", [row.gap_mean for row in rows], "{:.2g} nats"),
        ]


def sparkline(values: Sequence[float]) -> str:
    """At most WIDTH bars, each the mean of some values, from the lowest to the highest."""
    size = -(-len(values) // _WIDTH)
    means = [fmean(values[i : i + size]) for i in range(0, len(values), size)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_HEIGHTS[round((value - low) / span * (len(_HEIGHTS) - 1))] for value in means)
