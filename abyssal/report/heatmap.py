"""Maps: a value for each column and row, as a color.

Cells of one color are one path, so a map of thousands of cells is ten elements; the colors are the
classes h0 ... h9 (theme.py).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from abyssal.report.notation import escape
from abyssal.report.plots import notes

# Loads of experts in even shares, the middle color being "balanced".
EVEN_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0)


def legend(edges: Sequence[float], label: str) -> str:
    """The colors and the values they stand for; each edge begins the next color."""
    bounds = ["0", *(f"{edge:g}" for edge in edges)]
    items = "".join(f'<li class="h{i}">{bound}</li>' for i, bound in enumerate(bounds))
    return f'<ul class="heat-legend" aria-label="{escape(label)}">{items}</ul>'


def heat_map(
    columns: Sequence[Sequence[float]],
    edges: Sequence[float],
    remarks: Sequence[Sequence[str]],
    *,
    name: str,
    label: str,
    caption: str,
) -> str:
    """A figure of columns of equal height, top to bottom, at most nine edges between its colors.

    `remarks` are the rows of text that show under the pointer, for each column.
    """
    width, height = len(columns), len(columns[0])
    paths: list[list[str]] = [[] for _ in range(len(edges) + 1)]
    for row in range(height):
        colors = [bisect_right(edges, column[row]) for column in columns]
        borders = [0, *(x for x in range(1, width) if colors[x] != colors[x - 1]), width]
        for left, right in pairwise(borders):
            run = f"M{left} {row}h{right - left}v1h-{right - left}z"
            paths[colors[left]].append(run)
    cells = "".join(f'<path class="h{i}" d="{"".join(d)}"/>' for i, d in enumerate(paths) if d)
    strips = [
        (x / width, 1 / width, [escape(row) for row in rows]) for x, rows in enumerate(remarks)
    ]
    return (
        f'<figure class="card heat"><figcaption><b>{escape(name)}</b></figcaption>'
        f'<div class="map" style="height:{max(72, min(320, 13 * height))}px">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{cells}</svg>'
        f'{notes(strips)}</div><p class="span">{escape(caption)}'
        f"</p></figure>"
    )
