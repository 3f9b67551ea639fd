"""Who does the work: a map of expert load, one row an expert, one column a moment of the run.

A cell's color is the expert's share of the tokens over the even share, 1/E. Cells of one color are
one path, so a map of thousands of cells is ten elements; the colors are classes (theme.py).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from abyssal.report.notation import escape, number, two_decimals
from abyssal.report.plots import notes
from abyssal.train.history import Load

# Where one color ends and the next begins, in even shares. The middle one is "balanced".
EDGES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0)
CELLS = 200_000  # in all maps of a run together; more columns than fit are averaged
COLUMNS = 160


def heat_maps(loads: Sequence[Load], names: Sequence[str]) -> list[str]:
    """A figure for each MoE layer, named by names; the rows of loads must have one shape."""
    num_layers, num_experts = len(loads[0].load), len(loads[0].load[0])
    columns = max(16, min(COLUMNS, CELLS // (num_layers * num_experts)))
    groups = _groups(loads, columns)
    span = f"{number(loads[0].tokens)} to {number(loads[-1].tokens)} tokens"
    return [_figure([_mean(group, layer) for group in groups],
                    [group[-1] for group in groups], names[layer], span)
            for layer in range(num_layers)]  # fmt: skip


def legend() -> str:
    """The colors and the loads they stand for, in even shares."""
    bounds = ["0", *(f"{edge:g}" for edge in EDGES)]
    items = "".join(f'<li class="h{i}">{bound}</li>' for i, bound in enumerate(bounds))
    return f'<ul class="heat-legend" aria-label="load, in even shares">{items}</ul>'


def _groups(loads: Sequence[Load], columns: int) -> list[Sequence[Load]]:
    """The loads in at most `columns` runs of neighbors."""
    count = min(columns, len(loads))
    ends = [len(loads) * i // count for i in range(count + 1)]
    return [loads[first:last] for first, last in pairwise(ends)]


def _mean(group: Sequence[Load], layer: int) -> list[float]:
    """Each expert's load in one layer, in even shares, averaged over a group."""
    num_experts = len(group[0].load[layer])
    rows = zip(*(load.load[layer] for load in group), strict=True)
    return [sum(row) * num_experts / len(group) for row in rows]


def _figure(columns: list[list[float]], ends: Sequence[Load], name: str, span: str) -> str:
    width, height = len(columns), len(columns[0])
    paths: list[list[str]] = [[] for _ in range(len(EDGES) + 1)]
    for expert in range(height):
        colors = [bisect_right(EDGES, column[expert]) for column in columns]
        borders = [0, *(x for x in range(1, width) if colors[x] != colors[x - 1]), width]
        for left, right in pairwise(borders):
            run = f"M{left} {expert}h{right - left}v1h-{right - left}z"
            paths[colors[left]].append(run)
    cells = "".join(f'<path class="h{i}" d="{"".join(d)}"/>' for i, d in enumerate(paths) if d)
    strips = [(x / width, 1 / width, _note(column, ends[x])) for x, column in enumerate(columns)]
    return (
        f'<figure class="card heat"><figcaption><b>{escape(name)}</b></figcaption>'
        f'<div class="map" style="height:{max(72, min(320, 13 * height))}px">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(name)}: load of {height} experts, {escape(span)}">{cells}</svg>'
        f'{notes(strips)}</div><p class="span">experts 0 to {height - 1}, top to bottom; {span}'
        f"</p></figure>"
    )


def _note(column: list[float], load: Load) -> list[str]:
    most, least = max(column), min(column)
    return [
        f"step {load.step:,}",
        f"expert {column.index(most)}: {two_decimals(most)} even shares",
        f"expert {column.index(least)}: {two_decimals(least)}",
    ]
