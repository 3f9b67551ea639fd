"""One training run on the page: its figures, curves, experts, samples, events."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median

from abyssal.train.heatmap import heat_maps, legend
from abyssal.train.history import Metrics, Step
from abyssal.train.notation import (
    duration,
    escape,
    gigabytes,
    number,
    percent,
    plain,
    two_decimals,
)
from abyssal.train.plots import Chart, Level, Line, Mark, smooth

STAGES = {"pretrain": "Pre-training", "sft": "Supervised fine-tuning",
          "grpo": "Reinforcement learning", "distill": "Distillation"}  # fmt: skip
DEAD = 0.01  # of an even share: less, and an expert counts as dead


def stage_name(metrics: Metrics) -> str:
    """What to call the run."""
    stage = metrics.start.stage if metrics.start else metrics.name
    return STAGES.get(stage, stage)


def final_loss(metrics: Metrics) -> tuple[float, int]:
    """The mean loss of the last steps in nats per token, and how many they are."""
    count = max(1, min(50, len(metrics.steps) // 20))
    return fmean(row.loss for row in metrics.steps[-count:]), count


def final_bits(metrics: Metrics) -> dict[str, float]:
    """The last held-out bits per byte of every evaluation."""
    return {row.name: row.bits_per_byte for row in metrics.evaluations}


def elapsed_s(metrics: Metrics) -> float:
    """Seconds of training, as the run last recorded them."""
    if metrics.end:
        return metrics.end.elapsed_s
    return metrics.steps[-1].elapsed_s if metrics.steps else 0.0


def key_figures(metrics: Metrics) -> list[tuple[str, str, str]]:
    """(name, value, remark) of what one wants to know first."""
    steps, found = metrics.steps, list[tuple[str, str, str]]()
    if steps:
        loss, count = final_loss(metrics)
        remark = (
            f"nats per token, mean of the last {count} steps" if count > 1 else "nats per token"
        )
        found.append(("Final loss", two_decimals(loss), remark))
    for name, bits in final_bits(metrics).items():
        first = next(row.bits_per_byte for row in metrics.evaluations if row.name == name)
        found.append((f"Held-out {name}", f"{bits:.3f}", f"bits per byte; {first:.3f} at first"))
    if steps:
        found.append(("Tokens", number(steps[-1].tokens), f"in {steps[-1].step:,} steps"))
        speed = median(row.tokens_per_s for row in steps)
        found.append(("Time", duration(elapsed_s(metrics)), f"{number(speed)} tokens/s (median)"))
    if metrics.loads:
        dead, total, least = idle_experts(metrics)
        found.append(
            ("Dead experts", f"{dead} of {total}", f"least used: {plain(least)} even shares")
        )
    if metrics.end and metrics.end.peak_rss_bytes is not None:
        found.append(("Peak memory", gigabytes(metrics.end.peak_rss_bytes), "resident"))
    return found


def idle_experts(metrics: Metrics) -> tuple[int, int, float]:
    """Dead experts, all experts, and the load of the least used in even shares.

    Averaged over the last tenth of the recorded loads; dead is less than DEAD even shares.
    """
    last = metrics.loads[-max(1, len(metrics.loads) // 10) :]
    shares = [
        fmean(row.load[layer][expert] for row in last) * len(layer_load)
        for layer, layer_load in enumerate(last[0].load)
        for expert in range(len(layer_load))
    ]
    return sum(share < DEAD for share in shares), len(shares), min(shares)


def learning(metrics: Metrics, anchor: str) -> str:
    """Loss and held-out bits per byte."""
    return _loss(metrics, anchor) + _bits(metrics).html()


def optimization(metrics: Metrics) -> str:
    """Gradient norm, auxiliary losses and whatever was scheduled; constants in a sentence."""
    charts, constants = [_gradient(metrics).html()], list[str]()
    for name, unit, show, values in _scheduled(metrics):
        line = _line(metrics, name.lower(), values)
        if len(set(line.y)) > 1:
            charts.append(
                _over_tokens(
                    metrics, name, unit, [line], show=show, tick=show, from_zero=True
                ).html()
            )
        elif line.y:
            constants.append(f"{name.lower()} {show(line.y[0])}")
    balance = _line(metrics, "balance loss", lambda row: row.balance_loss)
    if any(balance.y):
        charts.append(_over_tokens(metrics, "Sequence balance loss", "nats", [balance]).html())
    sentence = f"Constant throughout: {'; '.join(constants)}." if constants else ""
    return _grid(charts) + (f'<p class="note">{escape(sentence)}</p>' if sentence else "")


def speed(metrics: Metrics) -> str:
    """Throughput and utilization."""
    rate = _line(metrics, "tokens/s", lambda row: row.tokens_per_s)
    use = _line(metrics, "MFU", lambda row: row.mfu)
    return _grid([
        _over_tokens(metrics, "Throughput", "tokens per second", _smoothed(rate), show=number, tick=number,
                     from_zero=True).html(),
        _over_tokens(metrics, "Model FLOPs utilization", "of the machine's peak", _smoothed(use),
                     show=percent, tick=percent, from_zero=True).html(),
    ])  # fmt: skip


def experts(metrics: Metrics) -> str:
    """The violation curve and the load of every expert over time."""
    mean = _line(metrics, "mean of layers", lambda row: row.max_violation)
    worst = _line(metrics, "worst layer", lambda row: row.max_violation_worst, color=2)
    chart = _over_tokens(
        metrics, "Load violation (MaxVio)", "busiest expert over even share, minus 1",
        [*_smoothed(mean), *_smoothed(worst)], from_zero=True, show=plain,
        caption="0 is perfect balance: every expert of a layer gets the same number of tokens.",
    ).html()  # fmt: skip
    if not metrics.loads:
        return chart
    dead, total, least = idle_experts(metrics)
    verdict = (
        f"Over the last tenth of the recorded steps, {dead} of {total} routed experts are dead "
        f"(less than {percent(DEAD)} of an even share); the least used one gets {plain(least)} "
        f"even shares."
    )
    maps = heat_maps(metrics.loads, _layer_names(metrics))
    return (
        f"{chart}<p>{escape(verdict)}</p>{legend()}"
        f'<p class="note">Load of each expert in even shares: 1 is balanced, blue is idle, orange '
        f"is overworked. Columns are recorded steps in order.</p>"
        f'<div class="grid maps">{"".join(maps)}</div>'
    )


def events(metrics: Metrics) -> str:
    """What went out of the ordinary, as a table."""
    rows = [
        f"<tr><td class=num>{row.step:,}</td><td>{escape(row.what)}</td>"
        f"<td>{escape(row.detail)}</td></tr>"
        for row in metrics.events
    ]
    if metrics.unreadable:
        remark = f"{metrics.unreadable} lines of the metrics file are broken and left out"
        rows.append(f"<tr><td></td><td>unreadable</td><td>{remark}</td></tr>")
    if not rows:
        return ""
    head = "<thead><tr><th class=num>Step</th><th>What</th><th>Detail</th></tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


# Charts


def _loss(metrics: Metrics, anchor: str) -> str:
    loss = _line(metrics, "loss", lambda row: row.loss)
    mtp = _line(metrics, "MTP loss", lambda row: row.mtp_loss, color=2)
    lines = [*_smoothed(loss), *_smoothed(mtp)[1:]]
    levels = []
    if metrics.config:
        chance = math.log(metrics.config.vocab_size)
        levels.append(
            Level(
                y=chance, label=f"ln {metrics.config.vocab_size:,} = {chance:.2f}: uniform guessing"
            )
        )
    caption = (
        f"Pale: every step. Solid: moving average with a half-life of {_half_life(loss)} steps."
    )
    views = [
        Chart(title="Loss", unit="nats per token, over tokens seen", lines=lines, levels=levels,
              marks=_marks(metrics), show=two_decimals, head=_head(metrics), tall=True,
              caption=caption, log_x=log, log_y=log)
        for log in (False, True)
    ]  # fmt: skip
    if not views[0].html():
        return ""
    switch = "".join(
        f'<input type="radio" name="{anchor}-loss" id="{anchor}-loss-{word}"{checked}>'
        f'<label for="{anchor}-loss-{word}">{word}</label>'
        for word, checked in (("linear", " checked"), ("logarithmic", ""))
    )
    return f'<div class="views">{switch}{"".join(view.html() for view in views)}</div>'


def _bits(metrics: Metrics) -> Chart:
    names = list(final_bits(metrics))
    lines = []
    for color, name in enumerate(names):
        rows = [row for row in metrics.evaluations if row.name == name]
        lines.append(Line(name=name, x=[row.tokens for row in rows],
                          y=[row.bits_per_byte for row in rows], color=color % 7 + 1,
                          style="dots"))  # fmt: skip
    known = [row for row in metrics.references if row.name in names]
    caption = "Text the model never trained on. Stored plainly, a byte takes 8 bits. " + " ".join(
        f"{row.what} ({row.name}): {row.bits_per_byte:.3f}, {row.source}." for row in known
    )
    return Chart(
        title="Held-out text", unit="bits per byte, over tokens seen", lines=lines,
        levels=[Level(y=row.bits_per_byte, label=row.what) for row in known],
        head=_head(metrics), show=lambda bits: f"{bits:.3g}",
        caption=caption.strip(),
    )  # fmt: skip


def _gradient(metrics: Metrics) -> Chart:
    norm = _line(metrics, "gradient norm", lambda row: row.grad_norm)
    finite = [y for y in norm.y if math.isfinite(y) and y > 0]
    wide = bool(finite) and max(finite) > 30 * min(finite)
    return _over_tokens(metrics, "Gradient norm", "before clipping", _smoothed(norm), log_y=wide)


def _scheduled(
    metrics: Metrics,
) -> Iterator[tuple[str, str, Callable[[float], str], Callable[[Step], float | None]]]:
    """Name, unit, notation and value of everything that may follow a schedule and is in use."""
    yield "Learning rate", "AdamW", plain, lambda row: row.lr
    yield "Batch", "tokens per step", number, lambda row: row.batch_tokens
    if any(row.gamma for row in metrics.steps):
        yield "Gamma", "step of the balancing bias", plain, lambda row: row.gamma
    if any(row.mtp_lambda for row in metrics.steps):
        yield "MTP lambda", "weight of the MTP loss", plain, lambda row: row.mtp_lambda


def _over_tokens(
    metrics: Metrics, title: str, unit: str, lines: Sequence[Line], *, caption: str = "",
    show: Callable[[float], str] = plain, tick: Callable[[float], str] = plain, from_zero: bool = False, log_y: bool = False,
) -> Chart:  # fmt: skip
    return Chart(title=title, unit=unit, lines=lines, caption=caption, show=show, tick=tick, log_y=log_y,
                 from_zero=from_zero, head=_head(metrics), marks=_marks(metrics))  # fmt: skip


def _line(
    metrics: Metrics, name: str, value: Callable[[Step], float | None], color: int = 1
) -> Line:
    """The steps that have the value, over tokens seen."""
    points = [(row.tokens, y) for row in metrics.steps if (y := value(row)) is not None]
    return Line(name=name, x=[x for x, _ in points], y=[y for _, y in points], color=color)


def _smoothed(line: Line) -> list[Line]:
    """The line made pale, and its moving average on top."""
    pale = Line(name=f"{line.name}, this step", x=line.x, y=line.y, color=line.color, style="faint",
                in_legend=False)  # fmt: skip
    return [
        pale,
        Line(name=line.name, x=line.x, y=smooth(line.y, _half_life(line)), color=line.color),
    ]


def _half_life(line: Line) -> int:
    return max(1, len(line.x) // 200)


def _head(metrics: Metrics) -> Callable[[float], str]:
    step_at = {row.tokens: row.step for row in metrics.evaluations}
    step_at |= {row.tokens: row.step for row in metrics.steps}
    return lambda tokens: f"step {step_at[int(tokens)]:,} · {number(tokens)} tokens"


def _marks(metrics: Metrics) -> list[Mark]:
    return [
        Mark(
            x=metrics.tokens_at(row.step),
            label=f"step {row.step:,}: {row.what}. {row.detail}".strip(),
        )
        for row in metrics.events
    ]


def _layer_names(metrics: Metrics) -> list[str]:
    """The layers of a load row: MoE blocks in order, then the MTP modules if they are recorded."""
    count = len(metrics.loads[0].load)
    if metrics.config is None:
        return [f"MoE layer {i}" for i in range(count)]
    first, blocks = metrics.config.first_k_dense_replace, metrics.config.num_hidden_layers
    return [
        f"Block {layer}" if layer < blocks else f"MTP module {layer - blocks + 1}"
        for layer in range(first, first + count)
    ]


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(charts)}</div>' if any(charts) else ""
