"""A run of reinforcement on the page: what it earned, and how engine and trainer agree."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from abyssal.evals.intervals import wilson
from abyssal.report.notation import escape, percent, plain, two_decimals
from abyssal.report.plots import Chart, Line, Mark, smooth
from abyssal.train.history import Reinforce
from abyssal.train.metrics import Metrics

Value = Callable[[Reinforce], float | None]


def reinforcement(metrics: Metrics) -> str:
    """Examinations first, then rewards by part, the policy, lengths, and the engine's gap."""
    charts = [
        _examined(metrics),
        _chart(metrics, "Rewards", "mean over all answers drawn", [
            ("sum", lambda row: row.reward), ("right", lambda row: row.accuracy),
            ("form", lambda row: row.format), *_used(metrics),
        ]),
        _chart(metrics, "Entropy", "nats a token", [("entropy", lambda row: row.entropy)]),
        _chart(metrics, "Distance to the reference", "KL, nats a token",
               [("KL", lambda row: row.kl)]),
        _chart(metrics, "Length", "tokens of an answer",
               [("mean", lambda row: row.length), ("longest", lambda row: row.longest)]),
        _chart(metrics, "What taught nothing", "shares", [
            ("questions whose answers earn the same", lambda row: row.skipped / row.groups),
            ("answers cut off", lambda row: row.overlong),
            ("tokens beyond the clip", lambda row: row.clipped),
        ]),
        _chart(metrics, "Engine and trainer", "|difference| of log-probabilities, nats",
               [("mean", lambda row: row.gap_mean)]),
        _chart(metrics, "Routing", "share of (token, layer) with other experts in the trainer",
               [("differs", lambda row: row.routing)]),
        _chart(metrics, "Guesses", "share of the MTP module's that were right",
               [("right", lambda row: row.accepted)]),
        _chart(metrics, "Time", "seconds of a step",
               [("drawing", lambda row: row.rollout_s), ("learning", lambda row: row.train_s)]),
    ]  # fmt: skip
    return f'<div class="grid">{"".join(charts)}</div>'


def key_figures(metrics: Metrics) -> list[tuple[str, str, str]]:
    """(name, value, remark): held-out accuracy at the end beside the start, form, steps."""
    found = []
    for name in dict.fromkeys(row.name for row in metrics.examinations):
        rows = [row for row in metrics.examinations if row.name == name]
        first, last = rows[0], rows[-1]
        _, low, high = wilson(last.right, last.asked)
        began = percent(first.right / first.asked)
        remark = f"{percent(low)} to {percent(high)} of {last.asked} held out; {began} at first"
        found.append((f"Right, {name}", percent(last.right / last.asked), remark))
    if metrics.reinforcements:
        row = metrics.reinforcements[-1]
        found.append(("In form", percent(row.format), "of the last answers drawn"))
        found.append(("Steps", f"{row.step:,}", f"{row.answers:,} answers each"))
    return found


def _examined(metrics: Metrics) -> str:
    lines = []
    for color, name in enumerate(dict.fromkeys(row.name for row in metrics.examinations), 1):
        rows = [row for row in metrics.examinations if row.name == name]
        x = [row.step for row in rows]
        y = [row.right / row.asked for row in rows]
        bounds = [wilson(row.right, row.asked) for row in rows]
        for side in ([one.low for one in bounds], [one.high for one in bounds]):
            lines.append(Line(name=f"{name}, 95%", x=x, y=side, color=color, style="faint",
                              in_legend=False))  # fmt: skip
        lines.append(Line(name=name, x=x, y=y, color=color))
    caption = "Greedy answers to questions the run never draws. Pale: Wilson's interval, 95%."
    return Chart(
        title="Right answers", unit="held out, over steps", lines=lines, caption=caption,
        show=percent, tick=percent, head=_head, from_zero=True, marks=_marks(metrics),
    ).html()  # fmt: skip


def _chart(metrics: Metrics, title: str, unit: str, values: Sequence[tuple[str, Value]]) -> str:
    """Values of each step, pale, with their moving averages on top."""
    lines: list[Line] = []
    for color, (name, value) in enumerate(values, 1):
        points = [(row.step, y) for row in metrics.reinforcements if (y := value(row)) is not None]
        if not points:
            continue
        line = Line(name=name, x=[x for x, _ in points], y=[y for _, y in points], color=color)
        average = smooth(line.y, max(1, len(line.x) // 50))
        lines += [replace(line, style="faint", in_legend=False), replace(line, y=average)]
    show = plain if "nats" in unit else two_decimals
    return Chart(
        title=title, unit=unit, lines=lines, show=show, head=_head, from_zero=True,
        marks=_marks(metrics),
    ).html()  # fmt: skip


def _used(metrics: Metrics) -> list[tuple[str, Value]]:
    """The parts that only some runs have."""
    parts: list[tuple[str, Value]] = [
        ("language", lambda row: row.language),
        ("reward model", lambda row: row.model),
    ]
    return [part for part in parts if any(part[1](row) for row in metrics.reinforcements)]


def _marks(metrics: Metrics) -> list[Mark]:
    return [Mark(x=row.step, label=f"{row.what}. {row.detail}") for row in metrics.events]


def _head(step: float) -> str:
    return escape(f"step {step:,.0f}")
