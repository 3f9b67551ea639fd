"""Figures as Markdown tables and plots: medians, spread, and the share of what was possible."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

RIVALS = {"q8_0": "int8", "q4_0": "int4"}  # our kind that a peer's is compared with
STANDS_FOR = {"S64": "S"}  # models that share a table
SIZES = {  # what the size of a figure means
    "decode": "batch",
    "layer": "batch",
    "prefill": "tokens",
    "first token": "tokens",
    "serving": "requests",
    "training": "tokens a step",
}
RATES = {
    "dram": "memory",
    "l3": "L3",
    "bf16": "BF16 products",
    "int8": "INT8 products",
    "fp32": "FP32 products",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One engine of a table: what was reported of it, by size."""

    engine: str
    kind: str
    model: str
    cells: dict[int, dict[str, Any]]


def tables(reports: Sequence[dict[str, Any]]) -> str:
    """All rows as Markdown, a table for each row and model, and the machine at the end."""
    parts = []
    for row, model in dict.fromkeys((r["row"], _table(r["model"])) for r in reports):
        lines = _lines(r for r in reports if r["row"] == row and _table(r["model"]) == model)
        parts.append(f"### {row}, model {model} ({_unit(reports, row)})\n\n{_tabled(row, lines)}")
        if counted := _counted(lines):
            parts.append(counted)
    return "\n\n".join([*parts, _machine(reports)]) + "\n"


def plots(reports: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """A picture for each row that is a rate; bars end at the largest and smallest turn."""
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    made = []
    for row in ("decode", "prefill", "serving", "training"):
        models = list(dict.fromkeys(_table(r["model"]) for r in reports if r["row"] == row))
        if not models:
            continue
        size = (4.6 * len(models) + 1.2, 3.4)
        figure, axes = pyplot.subplots(1, len(models), figsize=size, squeeze=False)
        for axis, model in zip(axes[0], models, strict=True):
            mine = (r for r in reports if r["row"] == row and _table(r["model"]) == model)
            _draw(axis, row, model, _lines(mine))
        figure.tight_layout()
        made.append(folder / f"{row}.png")
        figure.savefig(made[-1], dpi=160)
        pyplot.close(figure)
    return made


def _draw(axis: Any, row: str, model: str, lines: Sequence[Line]) -> None:
    sizes = sorted({size for line in lines for size in line.cells})
    width = 0.84 / len(lines)
    for i, line in enumerate(lines):
        at = [sizes.index(size) + (i - (len(lines) - 1) / 2) * width for size in line.cells]
        values = [cell["median"] for cell in line.cells.values()]
        low = [cell["median"] - cell["min"] for cell in line.cells.values()]
        high = [cell["max"] - cell["median"] for cell in line.cells.values()]
        axis.bar(
            at,
            values,
            width * 0.92,
            yerr=(low, high),
            error_kw={"lw": 0.7},
            label=f"{line.engine} {line.kind}",
            color=_color(line),
            hatch="////" if line.engine.endswith(("LLM", "compiled")) else None,
            edgecolor="white",
            linewidth=0,
        )
    axis.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axis.set(yscale="log", xlabel=SIZES[row], ylabel="tok/s", title=f"{row}, model {model}")
    axis.legend(frameon=False, fontsize=6.5, ncols=2)
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top * 4)  # room for the legend


def _color(line: Line) -> Any:
    """Ours blue, a peer's a hue of its own; fewer bits are lighter."""
    from matplotlib import colormaps

    hues = {"abyssal": "Blues", "llama.cpp": "Oranges", "transformers": "Greens", "vLLM": "Purples"}
    hue = next(name for start, name in hues.items() if line.engine.startswith(start))
    shade = {"fp32": 0.95, "bf16": 0.8, "int8": 0.6, "q8_0": 0.6, "fp8": 0.6}.get(line.kind, 0.4)
    return colormaps[hue](shade)


def _lines(reports: Iterable[dict[str, Any]]) -> list[Line]:
    lines: dict[tuple[str, str, str], Line] = {}
    for report in reports:
        key = report["engine"], report["kind"], report["model"]
        lines.setdefault(key, Line(*key, {})).cells[report["size"]] = report
    return list(lines.values())


def _tabled(row: str, lines: Sequence[Line]) -> str:
    sizes = sorted({size for line in lines for size in line.cells})
    heads = [f"{SIZES[row]} {size:,}" if row in SIZES else "" for size in sizes]
    text = ["| engine | " + " | ".join(f"{head} | of limit | ours" for head in heads) + " |"]
    text.append("| --- |" + " ---: | ---: | ---: |" * len(sizes))
    for line in lines:
        cells = [_cells(line.cells.get(size), _ours(line, lines, size)) for size in sizes]
        name = f"{line.engine} {line.kind}"
        name += f" ({line.model})" if line.model in STANDS_FOR else ""
        text.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def _cells(report: dict[str, Any] | None, ours: float | None) -> str:
    if report is None:
        return " | | "
    spread = ""
    if len(report["values"]) > 1:
        spread = f" ({_number(report['min'])} to {_number(report['max'])})"
    loud = "~" if max(report["others"], default=0.0) > 0.1 else ""  # others were there
    share = f"{report['share']:.0%}" if report["share"] is not None else ""
    return f"{loud}{_number(report['median'])}{spread} | {share} | {f'{ours:.2f}x' if ours else ''}"


def _counted(lines: Sequence[Line]) -> str:
    """What the limits are made of: bytes and operations by kind and size; empty without limits."""
    found: dict[str, str] = {}
    for line in lines:
        for size, report in line.cells.items():
            if cost := report["cost"]:
                gigas = (cost["num_bytes"] / 1e9, cost["operations"] / 1e9)
                text = "{:.3g} GB, {:.3g} G operations".format(*gigas)
                found.setdefault(f"{line.model} {line.kind} {size:,}", f"{text}, {report['bound']}")
    return "Counted: " + "; ".join(f"{key}: {text}" for key, text in found.items()) if found else ""


def _ours(line: Line, lines: Sequence[Line], size: int) -> float | None:
    """How many times as good we are in the same precision; None for ourselves."""
    if line.engine.startswith("abyssal") or size not in line.cells:
        return None
    kind = RIVALS.get(line.kind, line.kind)
    mine = [x for x in lines if x.engine.startswith("abyssal") and x.kind == kind]
    if not mine or size not in mine[0].cells:
        return None
    ours, theirs = mine[0].cells[size]["median"], line.cells[size]["median"]
    ratio: float = ours / theirs if line.cells[size]["unit"].endswith("tok/s") else theirs / ours
    return ratio


def _machine(reports: Sequence[dict[str, Any]]) -> str:
    """What the limits were, over the whole run."""
    looks = [look for report in reports for look in report["machine"]]
    if not looks:
        return ""
    text = ["### the machine", "", "| rate | median | lowest | highest |"]
    text.append("| --- | ---: | ---: | ---: |")
    for name, words in RATES.items():
        found = sorted(look[name] / 1e9 for look in looks)
        unit = "GB/s" if name in ("dram", "l3") else "Gop/s"
        low, middle, high = (f"{rate:,.0f}" for rate in (found[0], median(found), found[-1]))
        text.append(f"| {words}, {unit} | {middle} | {low} | {high} |")
    return "\n".join(text)


def _table(model: str) -> str:
    return STANDS_FOR.get(model, model)


def _unit(reports: Sequence[dict[str, Any]], row: str) -> str:
    unit: str = next(report["unit"] for report in reports if report["row"] == row)
    return unit


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
