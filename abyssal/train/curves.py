"""The curves of one run over tokens seen: what it learned, what steered it, how fast it went."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from abyssal.report.notation import escape, number, percent, plain, two_decimals
from abyssal.report.plots import Chart, Level, Line, Mark, smooth
from abyssal.train.history import Drift, Step
from abyssal.train.metrics import Metrics


def learning(metrics: Metrics, anchor: str) -> str:
    """Loss, held-out scores and the stage's own figures; anchor is a word no other run on the page
    uses.
    """
    return (
        _loss(metrics, anchor) + _bits(metrics) + _grid([*_figures(metrics), *_held_out(metrics)])
    )


def loss_unit(metrics: Metrics) -> str:
    """What a loss is of."""
    stage = metrics.start.stage if metrics.start else ""
    return {"dpo": "nats per pair", "reward": "nats per judgment"}.get(stage, "nats per token")


def drifted(row: Drift, names: Sequence[str]) -> list[str]:
    """The load of every expert before and after, in even shares; a chart for each layer."""
    charts = []
    for name, before, after in zip(names, row.load_before, row.load, strict=True):
        places = list(range(len(before)))
        lines = [
            Line(
                name=when, x=places, y=[x * len(shares) for x in shares], color=color, style="dots"
            )
            for when, shares, color in (("before", before, 1), ("after", after, 2))
        ]
        chart = Chart(title=name, unit="even shares, by expert", lines=lines, from_zero=True,
                      head=lambda expert: f"expert {expert:.0f}")  # fmt: skip
        charts.append(chart.html())
    return charts


def optimization(metrics: Metrics) -> str:
    """Gradient norm, the balance loss, and whatever was scheduled; constants in a sentence."""
    charts, constants = [_gradient(metrics)], list[str]()
    for name, unit, show, values in _scheduled(metrics):
        line = _line(metrics, name.lower(), values)
        if len(set(line.y)) > 1:
            chart = _chart(metrics, name, unit, [line])
            charts.append(replace(chart, show=show, tick=show, from_zero=True).html())
        elif line.y:
            constants.append(f"{name.lower()} {show(line.y[0])}")
    balance = _line(metrics, "balance loss", lambda row: row.balance_loss)
    if any(balance.y):
        unit = "experts by affinity, eq. 17"
        charts.append(_chart(metrics, "Sequence balance loss", unit, _smoothed(balance)).html())
    sentence = f"Constant throughout: {'; '.join(constants)}." if constants else ""
    return _grid(charts) + (f'<p class="note">{escape(sentence)}</p>' if sentence else "")


def speed(metrics: Metrics) -> str:
    """Throughput and utilization."""
    rate = _smoothed(_line(metrics, "tokens/s", lambda row: row.tokens_per_s))
    use = _smoothed(_line(metrics, "MFU", lambda row: row.mfu))
    speeds = _chart(metrics, "Throughput", "tokens per second", rate)
    uses = _chart(metrics, "Model FLOPs utilization", "of the machine's peak", use)
    return _grid(
        [
            replace(speeds, show=number, tick=number, from_zero=True).html(),
            replace(uses, show=percent, tick=percent, from_zero=True).html(),
        ]
    )


def violation(metrics: Metrics) -> str:
    """How far the busiest expert is above an even share."""
    mean = _line(metrics, "mean of layers", lambda row: row.max_violation)
    worst = _line(metrics, "worst layer", lambda row: row.max_violation_worst, color=2)
    unit = "busiest expert over even share, minus 1"
    chart = _chart(metrics, "Load violation (MaxVio)", unit, [*_smoothed(mean), *_smoothed(worst)])
    caption = "0 is perfect balance: every expert of a layer gets the same number of tokens."
    return replace(chart, caption=caption, from_zero=True).html()


def _loss(metrics: Metrics, anchor: str) -> str:
    """The loss twice, on linear and on logarithmic axes, and a switch between them."""
    loss = _line(metrics, "loss", lambda row: row.loss)
    mtp = _line(metrics, "MTP loss", lambda row: row.mtp_loss, color=2)
    chart = _chart(
        metrics,
        "Loss",
        f"{loss_unit(metrics)}, over tokens seen",
        [*_smoothed(loss), *_smoothed(mtp)[1:]],
    )
    steps = _half_life(loss)
    caption = f"moving average with a half-life of {steps} step{'s' if steps > 1 else ''}."
    chart = replace(chart, caption=f"Pale: every step. Solid: {caption}", show=two_decimals,
                    levels=_chance(metrics), tall=True)  # fmt: skip
    views = [chart.html(), replace(chart, log_x=True, log_y=True).html()]
    if not views[0]:
        return ""
    switch = "".join(
        f'<input type="radio" name="{anchor}-loss" id="{anchor}-loss-{word}"{checked}>'
        f'<label for="{anchor}-loss-{word}">{word}</label>'
        for word, checked in (("linear", " checked"), ("logarithmic", ""))
    )
    return f'<div class="views">{switch}{"".join(views)}</div>'


def _chance(metrics: Metrics) -> list[Level]:
    """The loss of a model that finds every token of the vocabulary equally likely."""
    if metrics.config is None or loss_unit(metrics) != "nats per token":
        return []
    size = metrics.config.vocab_size
    return [Level(y=math.log(size), label=f"ln {size:,} = {math.log(size):.2f}: uniform guessing")]


def _bits(metrics: Metrics) -> str:
    """Held-out bits per byte, beside the references that the run recorded."""
    names = list(dict.fromkeys(row.name for row in metrics.evaluations))
    lines = []
    for color, name in enumerate(names):
        rows = [row for row in metrics.evaluations if row.name == name]
        x, y = [row.tokens for row in rows], [row.bits_per_byte for row in rows]
        lines.append(Line(name=name, x=x, y=y, color=color % 7 + 1, style="dots"))
    known = [row for row in metrics.references if row.name in names]
    caption = "Text the model never trained on. Stored plainly, a byte takes 8 bits. " + " ".join(
        f"{row.what} ({row.name}): {row.bits_per_byte:.3f}, {row.source}." for row in known
    )
    return Chart(
        title="Held-out text", unit="bits per byte, over tokens seen", lines=lines,
        levels=[Level(y=row.bits_per_byte, label=f"{row.what} ({row.name})") for row in known],
        show=lambda bits: f"{bits:.3f}", head=_head(metrics), caption=caption.strip(),
    ).html()  # fmt: skip


def _figures(metrics: Metrics) -> Iterator[str]:
    """What only this stage has: a chart for each word before a slash, or for a name of its own."""
    names = list(dict.fromkeys(name for row in metrics.steps for name in row.figures))
    for group in dict.fromkeys(name.split("/")[0] for name in names):
        inside = [name for name in names if name.split("/")[0] == group]
        lines = []
        for color, name in enumerate(inside):
            line = _line(metrics, name, _figure(name), color=color % 7 + 1)
            lines += _smoothed(line) if len(inside) == 1 else _smoothed(line)[1:]
        yield _chart(metrics, group.capitalize(), "in training", lines).html()


def _figure(name: str) -> Callable[[Step], float | None]:
    return lambda row: row.figures.get(name)


def _held_out(metrics: Metrics) -> Iterator[str]:
    """Measures of what the model is not trained on."""
    for name in dict.fromkeys(row.name for row in metrics.measures):
        rows = [row for row in metrics.measures if row.name == name]
        x, y = [row.tokens for row in rows], [row.value for row in rows]
        line = Line(name=name, x=x, y=y, style="dots")
        yield Chart(
            title=name, unit="held out, over tokens seen", lines=[line], head=_head(metrics)
        ).html()


def _gradient(metrics: Metrics) -> str:
    norm = _line(metrics, "gradient norm", lambda row: row.grad_norm)
    positive = [y for y in norm.y if 0 < y < math.inf]
    wide = bool(positive) and max(positive) > 30 * min(positive)
    chart = _chart(metrics, "Gradient norm", "before clipping", _smoothed(norm))
    return replace(chart, log_y=wide).html()


def _scheduled(
    metrics: Metrics,
) -> Iterator[tuple[str, str, Callable[[float], str], Callable[[Step], float | None]]]:
    """Name, unit, notation and value of everything that may follow a schedule and is in use."""
    yield "Learning rate", "of the step", plain, lambda row: row.lr
    yield "Batch", "tokens per step", number, lambda row: row.batch_tokens
    if any(row.gamma for row in metrics.steps):
        yield "Gamma", "step of the balancing bias", plain, lambda row: row.gamma
    if any(row.mtp_lambda for row in metrics.steps):
        yield "MTP lambda", "weight of the MTP loss", plain, lambda row: row.mtp_lambda


def _chart(metrics: Metrics, title: str, unit: str, lines: Sequence[Line]) -> Chart:
    """The lines over tokens seen, with the run's events marked."""
    marks = [
        Mark(x=metrics.tokens_at(row.step), label=f"step {row.step:,}: {row.what}. {row.detail}")
        for row in metrics.events
    ]
    return Chart(title=title, unit=unit, lines=lines, marks=marks, head=_head(metrics))


def _line(
    metrics: Metrics, name: str, value: Callable[[Step], float | None], color: int = 1
) -> Line:
    """The steps that have the value, over tokens seen."""
    points = [(row.tokens, y) for row in metrics.steps if (y := value(row)) is not None]
    return Line(name=name, x=[x for x, _ in points], y=[y for _, y in points], color=color)


def _smoothed(line: Line) -> list[Line]:
    """The line made pale, and its moving average on top."""
    average = smooth(line.y, _half_life(line))
    pale = replace(line, name=f"{line.name}, this step", style="faint", in_legend=False)
    return [pale, replace(line, y=average)]


def _half_life(line: Line) -> int:
    return max(1, len(line.x) // 200)


def _head(metrics: Metrics) -> Callable[[float], str]:
    step_at = {row.tokens: row.step for row in metrics.evaluations}
    step_at |= {row.tokens: row.step for row in metrics.measures}
    step_at |= {row.tokens: row.step for row in metrics.steps}
    return lambda tokens: f"step {step_at[int(tokens)]:,} · {number(tokens)} tokens"


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(charts)}</div>' if any(charts) else ""
