"""A training plan as one HTML page: memory, a step, its pipeline as a timeline, what all costs."""

from abyssal.config import ModelConfig
from abyssal.plan import pipeline
from abyssal.plan.memory import Memory
from abyssal.plan.schedules import SCHEDULES, least_micro_batches
from abyssal.plan.time import chunk_times
from abyssal.plan.training import TrainingPlan
from abyssal.report.notation import duration, escape, gigabytes, number, percent
from abyssal.report.page import Section, document, figures, table
from abyssal.report.plots import Chart, Line
from abyssal.report.timeline import CSS, Span, timeline

_PARTS = ("weights", "masters", "moments", "gradients", "activations", "work", "head", "slack")
_COLORS = {part: min(i, 7) for i, part in enumerate(_PARTS, 1)}
_KINDS = {"forward": 1, "backward": 2, "weights": 3, "both": 4}
_COLOR_OF = {"F": 1, "B": 2, "I": 2, "W": 3, "F&B": 4}
_MOST_DRAWN = 40  # micro-batches of the timeline


def page(name: str, config: ModelConfig, planned: TrainingPlan) -> str:
    """The whole page."""
    layout, hardware = planned.layout, planned.hardware
    lede = (
        f"{planned.stage} on {layout.devices:,} x {hardware.name}: dp {layout.dp}, pp {layout.pp}, "
        f"ep {layout.ep}, ZeRO-{layout.zero}, {layout.precision}, {layout.schedule}; "
        f"{layout.sequences:,} sequences of {layout.seq_len:,} tokens a step."
    )
    sections = [
        Section("summary", "In short", _summary(planned)),
        Section("memory", "Memory", _memory(planned)),
        Section("step", "A step", _step(planned)),
        Section("pipeline", "Pipeline", _pipeline(config, planned)),
        Section("cost", "Cost", _cost(planned)),
        Section("assumed", "What is assumed", _assumed(planned)),
    ]
    return document(f"{name}: a plan", lede, sections, CSS)


def _summary(planned: TrainingPlan) -> str:
    time, largest = planned.time, planned.largest
    last = list(planned.costs.values())[-1]
    money = "no price stated" if last.dollars is None else f"${last.dollars:,.0f}"
    fits = "fits" if planned.fits else "does not fit"
    return figures(
        [
            ("Fullest device", gigabytes(largest.total),
             f"{fits} {gigabytes(int(planned.usable_bytes))}"),
            ("Step", f"{time.total_s:.3g} s", f"{number(time.step_tokens)} tokens"),
            ("Speed", number(time.tokens_per_s), "tokens a second, all devices"),
            ("MFU", percent(time.mfu), "of the peak in BF16"),
            ("Device hours", number(last.device_hours), f"{duration(last.days * 86400)}"),
            ("Money", money, f"for {number(last.tokens)} tokens"),
        ]
    )  # fmt: skip


def _memory(planned: TrainingPlan) -> str:
    """A bar for each pipeline rank, as long as its share of the fullest."""
    most = max(planned.largest.total, int(planned.usable_bytes))
    bars = "".join(
        f'<p class="bar-name">rank {rank}: {escape(gigabytes(memory.total))}</p>'
        f"{_bar(memory, most)}"
        for rank, memory in enumerate(planned.memory)
    )
    used = [part for part in _PARTS if any(getattr(one, part) for one in planned.memory)]
    legend = "".join(f'<li class="span s{_COLORS[part]}">{part}</li>' for part in used)
    rows = [
        (f"{rank}", *(gigabytes(getattr(memory, part)) for part in used), gigabytes(memory.total))
        for rank, memory in enumerate(planned.memory)
    ]
    return (
        f'<figure class="card"><figcaption><b>Devices of a pipeline</b> <span class="unit">the '
        f"longest bar is {escape(gigabytes(most))}</span>"
        f'<ul class="legend">{legend}</ul></figcaption>{bars}</figure>'
        + table(("Rank", *(part.capitalize() for part in used), "Together"), rows, len(used) + 1)
    )


def _bar(memory: Memory, most: int) -> str:
    pieces = "".join(
        f'<i class="s{_COLORS[part]}" style="width:{100 * size / most:.2f}%" '
        f'title="{part}: {escape(gigabytes(size))}"></i>'
        for part in _PARTS
        if (size := getattr(memory, part))
    )
    return f'<div class="bar">{pieces}</div>'


def _step(planned: TrainingPlan) -> str:
    time = planned.time
    parts = {
        "computing": time.compute_s, "sending, not hidden": time.sending_s,
        "waiting": time.waiting_s, "adding up gradients": time.gradients_s,
        "optimizer": time.optimizer_s,
    }  # fmt: skip
    rows = [(name, f"{part:.4g} s", percent(part / time.total_s)) for name, part in parts.items()]
    pieces = "".join(
        f'<i class="s{i}" style="width:{100 * max(part, 0) / time.total_s:.2f}%" '
        f'title="{name}"></i>'
        for i, (name, part) in enumerate(parts.items(), 1)
    )
    return f'<div class="card"><div class="bar">{pieces}</div></div>' + table(
        ("Part", "Time", "Share"), rows, 2
    )


def _pipeline(config: ModelConfig, planned: TrainingPlan) -> str:
    """The planned schedule drawn, and what each schedule would wait."""
    layout = planned.layout
    if layout.pp == 1:
        return ""
    times, _ = chunk_times(config, layout, planned.hardware)
    least = least_micro_batches(layout.schedule, layout.pp)
    most = max(least, _MOST_DRAWN - _MOST_DRAWN % 2)
    drawn = pipeline.simulate(layout.schedule, layout.pp, min(layout.micro_batches, most), times)
    rows = [
        (f"rank {rank}", [Span(s.start, s.end, _COLOR_OF[s.task.kind]) for s in spans])
        for rank, spans in enumerate(drawn.ranks)
    ]
    used = {s.task.kind for spans in drawn.ranks for s in spans}
    legend = {
        name: color for name, color in _KINDS.items()
        if any(_COLOR_OF[kind] == color for kind in used)
    }  # fmt: skip
    caption = (
        f"The first {min(layout.micro_batches, most)} of {layout.micro_batches:,} micro-batches of "
        f"a step, as if there were no more; {percent(drawn.bubble)} of the time nobody works."
    )
    figure = timeline("Timeline", f"{drawn.span:.3g} s", rows, legend, caption)
    return figure + _bubbles(layout.pp, layout.micro_batches, times)


def _bubbles(pp: int, micro_batches: int, times: list[pipeline.Times]) -> str:
    """The idle share of every schedule over micro-batches of a step."""
    lines = []
    for color, schedule in enumerate(SCHEDULES, 1):
        if schedule.startswith("dualpipe") and pp % 2:
            continue
        counts = [pp * factor for factor in (1, 2, 3, 4, 6, 8)]
        counts = [n for n in counts if n >= least_micro_batches(schedule, pp)
                  and (schedule != "dualpipe" or n % 2 == 0)]  # fmt: skip
        shares = [pipeline.simulate(schedule, pp, n, times).bubble for n in counts]
        lines.append(Line(name=schedule, x=[float(n) for n in counts], y=shares, color=color))
    return Chart(
        title="Idle share by schedule", unit="of the pipeline's time, over micro-batches a step",
        lines=lines, show=percent, tick=percent, from_zero=True,
        head=lambda n: f"{n:.0f} micro-batches",
        caption=f"This plan has {micro_batches:,}.",
    ).html()  # fmt: skip


def _cost(planned: TrainingPlan) -> str:
    rows = [
        (
            name,
            number(one.tokens),
            f"{one.device_hours:,.0f}",
            duration(one.days * 86400),
            "not stated" if one.dollars is None else f"${one.dollars:,.0f}",
        )
        for name, one in planned.costs.items()
    ]
    return table(("Phase", "Tokens", "Device hours", "Time", "Money"), rows, 4)


def _assumed(planned: TrainingPlan) -> str:
    measured = planned.hardware.measured is not None
    text = (
        "Blocks, head and optimizer were timed on this machine, and put together."
        if measured
        else "Peaks and links are those of data sheets; the shares of them that real kernels "
        "sustain are assumed (abyssal/plan/time.py), and nothing fails, restarts or waits for data."
    )
    return f"<p>{escape(text)}</p>"
