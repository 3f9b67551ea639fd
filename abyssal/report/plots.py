"""Charts as HTML: lines in an SVG that stretches, with words and numbers laid around it.

The SVG has no text. Labels are ordinary HTML at percentages of the plot, so they keep their size
when a phone squeezes the chart, and lines keep their width (``vector-effect``). Values appear under
the pointer by CSS alone: strips cover the plot, each with a note that shows while it is hovered.
Colors are classes (theme.py), which is how one chart serves light and dark.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from abyssal.report.notation import escape, number, plain

SIZE = 1000  # the SVG's own width and height
STRIPS = 64  # notes under the pointer, at most
POINTS = 400  # buckets a long line is thinned to; each keeps its lowest and highest point


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; points that are not finite leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 1  # s1 ... s7 in theme.py
    style: str = ""  # "" | "faint" | "dots"
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line to compare with; drawn only where the curves come near it."""

    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at x."""

    x: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart and everything said around it; x is in tokens, from 0 unless logarithmic."""

    title: str
    unit: str
    lines: Sequence[Line]
    caption: str = ""
    levels: Sequence[Level] = ()
    marks: Sequence[Mark] = ()
    show: Callable[[float], str] = plain
    tick: Callable[[float], str] = plain
    head: Callable[[float], str] = number  # of the note at x
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False
    tall: bool = False

    def html(self) -> str:
        """The chart as a figure; nothing at all when no line has a point."""
        if not any(math.isfinite(y) for line in self.lines for y in line.y):
            return ""
        caption = f'<p class="note">{escape(self.caption)}</p>' if self.caption else ""
        return (
            f'<figure class="card"><figcaption><b>{escape(self.title)}</b> '
            f'<span class="unit">{escape(self.unit)}</span>{self._legend()}</figcaption>'
            f"{self.plot()}{caption}</figure>"
        )

    def plot(self) -> str:
        """The drawing with its axes, without title and caption."""
        places = [x for line in self.lines for x in line.x] + [0.0]
        xs = Scale.around(places, log=self.log_x, tight=True)
        values = [y for line in self.lines for y in line.y]
        if self.from_zero:
            values.append(0.0)
        ys = Scale.around(values, log=self.log_y)
        label = f"{self.title}, {self.unit}"
        return (
            f'<div class="plot{" tall" if self.tall else ""}">'
            f'<svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(label)}">'
            + "".join(f'<path class="grid" d="M0 {_down(ys, y)}H{SIZE}"/>' for y in ys.ticks())
            + "".join(self._level(level, ys) for level in self.levels)
            + "".join(_path(line, xs, ys) for line in self.lines)
            + "</svg>"
            + "".join(_label("y", 1 - ys.at(y), self.tick(y)) for y in ys.ticks())
            + "".join(_label("x", xs.at(x), number(x)) for x in xs.ticks())
            + "".join(self._level_label(level, ys) for level in self.levels)
            + self._notes(xs)
            + "".join(_mark(mark, xs) for mark in self.marks)
            + "</div>"
        )

    def _legend(self) -> str:
        named = [line for line in self.lines if line.in_legend]
        if len(named) < 2:
            return ""
        items = (f'<li class="s{line.color}">{escape(line.name)}</li>' for line in named)
        return f'<ul class="legend">{"".join(items)}</ul>'

    def _level(self, level: Level, ys: "Scale") -> str:
        near = ys.low <= level.y <= ys.high
        return f'<path class="level" d="M0 {_down(ys, level.y)}H{SIZE}"/>' if near else ""

    def _level_label(self, level: Level, ys: "Scale") -> str:
        if not ys.low <= level.y <= ys.high:
            return ""
        top = _percent(1 - ys.at(level.y))
        return f'<span class="name" style="top:{top}">{escape(level.label)}</span>'

    def _notes(self, xs: "Scale") -> str:
        """Strips of equal width, each with the values nearest to its middle."""
        points = sorted({x for line in self.lines for x in line.x if x > 0 or not xs.log})
        count = max(1, min(STRIPS, len(points)))
        strips = []
        for strip in range(count):
            x = _nearest(points, xs.value((strip + 0.5) / count))
            rows = [escape(self.head(x))]
            for line in self.lines:
                at = bisect_left(line.x, x)
                if at < len(line.x) and line.x[at] == x and math.isfinite(line.y[at]):
                    swatch = f'<s class="s{line.color}"></s>'
                    rows.append(f"{swatch}{escape(line.name)} {escape(self.show(line.y[at]))}")
            strips.append((strip / count, 1 / count, rows))
        return notes(strips)


@dataclass(frozen=True)
class Scale:
    """Values on [0, 1], linearly or by their logarithm."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, log: bool = False, tight: bool = False) -> "Scale":
        """The scale that holds all finite values, with a little air unless tight."""
        finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        low, high = min(finite, default=1.0), max(finite, default=1.0)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - abs(low) / 2, high + abs(high) / 2)
        if low == high:
            low, high = 0.0, 1.0
        if not tight:
            air = (high / low) ** 0.05 if log else (high - low) * 0.05
            floor = 0.0 if low == 0.0 else low - air
            low, high = (low / air, high * air) if log else (floor, high + air)
        return cls(low, high, log)

    def at(self, value: float) -> float:
        """Where the value lies between low (0) and high (1)."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def value(self, at: float) -> float:
        """The value at a place in [0, 1]."""
        if self.log:
            return self.low * math.exp(at * math.log(self.high / self.low))
        return self.low + at * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to seven round values; on a logarithmic scale 1, 2 and 5 of each decade at most."""
        if self.log and self.high / self.low > 8:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = -(-len(decades) // 7)
            heads = (1, 2, 5) if len(decades) <= 3 else (1,)
            found = [head * 10.0**decade for decade in decades[::every] for head in heads]
        else:
            step = _round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            found = [(first + i) * step for i in range(8)]
        return [v for v in found if -1e-9 <= self.at(v) <= 1 + 1e-9]


def smooth(values: Sequence[float], half_life: float) -> list[float]:
    """The exponential moving average, unbiased at the start; what is not finite is passed over."""
    keep, total, weight, out = 0.5 ** (1 / half_life), 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight if weight else math.nan)
    return out


def notes(strips: Iterable[tuple[float, float, Sequence[str]]]) -> str:
    """Strips (left, width, rows of escaped HTML) over a plot; the rows show while it is hovered."""
    return "".join(
        f'<i class="strip{" end" if left > 0.5 else ""}" '
        f'style="left:{_percent(left)};width:{_percent(width)}"><b>{"<br>".join(rows)}</b></i>'
        for left, width, rows in strips
    )


def _path(line: Line, xs: Scale, ys: Scale) -> str:
    """The curve as one path; dots are the round caps of strokes without length."""
    commands, pen_down = [], False
    for x, y in _thin(line.x, line.y):
        drawable = math.isfinite(y) and (y > 0 or not ys.log) and (x > 0 or not xs.log)
        if drawable:
            place = f"{xs.at(x) * SIZE:.1f} {_down(ys, y)}"
            commands.append(f"{'L' if pen_down else 'M'}{place}")
        pen_down = drawable
    drawing = "".join(commands)
    kind = f"s{line.color} {line.style}".strip()
    dots = ""
    if line.style == "dots":
        points = "".join(command.replace("L", "M") + "h0" for command in commands)
        dots = f'<path class="s{line.color} points" d="{points}"/>'
    return f'<path class="{kind}" d="{drawing}"/>{dots}'


def _thin(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """At most two points a bucket, its lowest and highest: a spike stays a spike."""
    points = list(zip(x, y, strict=True))
    if len(points) <= 2 * POINTS:
        return points
    thin = [points[0]]
    for bucket in range(POINTS):
        first, last = (len(points) * b // POINTS for b in (bucket, bucket + 1))
        chunk = [i for i in range(first, last) if math.isfinite(y[i])]
        if chunk:
            extremes = {min(chunk, key=lambda i: y[i]), max(chunk, key=lambda i: y[i])}
            thin += [points[i] for i in sorted(extremes)]
    return [*thin, points[-1]]


def _nearest(points: Sequence[float], x: float) -> float:
    """Of ascending points, the one closest to x."""
    at = bisect_left(points, x)
    return min(points[max(0, at - 1) : at + 1], key=lambda point: abs(point - x))


def _mark(mark: Mark, xs: Scale) -> str:
    at = min(1.0, max(0.0, xs.at(mark.x))) if mark.x > 0 or not xs.log else 0.0
    return f'<i class="mark" style="left:{_percent(at)}" title="{escape(mark.label)}"></i>'


def _label(axis: str, at: float, text: str) -> str:
    side = "top" if axis == "y" else "left"
    edge = " first" if axis == "x" and at < 0.04 else " last" if axis == "x" and at > 0.96 else ""
    return f'<span class="{axis}{edge}" style="{side}:{_percent(at)}">{escape(text)}</span>'


def _down(ys: Scale, y: float) -> str:
    return f"{(1 - ys.at(y)) * SIZE:.1f}"


def _percent(part: float) -> str:
    return f"{100 * part:.2f}%"


def _round_step(raw: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below raw."""
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(head * power for head in (1, 2, 2.5, 5, 10) if head * power >= raw * (1 - 1e-9))
