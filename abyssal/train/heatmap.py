"""Who does the work: a map of expert load, one row an expert, one column a moment of the run.

A cell's color is the expert's share of the tokens over the even share, 1/E.
"""

from collections.abc import Sequence
from itertools import pairwise

from abyssal.report import heatmap
from abyssal.report.heatmap import EVEN_SHARES, heat_map
from abyssal.report.notation import number, two_decimals
from abyssal.train.history import Load

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
    return heatmap.legend(EVEN_SHARES, "load, in even shares")


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
    height = len(columns[0])
    return heat_map(
        columns,
        EVEN_SHARES,
        [_note(column, load) for column, load in zip(columns, ends, strict=True)],
        name=name,
        label=f"{name}: load of {height} experts, {span}",
        caption=f"experts 0 to {height - 1}, top to bottom; {span}",
    )


def _note(column: list[float], load: Load) -> list[str]:
    most, least = max(column), min(column)
    return [
        f"step {load.step:,}",
        f"expert {column.index(most)}: {two_decimals(most)} even shares",
        f"expert {column.index(least)}: {two_decimals(least)}",
    ]
