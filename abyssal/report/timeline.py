"""Who does what when: a row for each worker, a colored span for each thing it does.

Like the charts, an SVG that stretches and has no text, with words and notes laid around it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from abyssal.report.notation import escape
from abyssal.report.plots import SIZE

CSS = """
.rows{position:relative;margin:14px 6px 10px 56px}
.rows svg{width:100%;height:100%;overflow:visible}
.rows path{fill:var(--c);stroke:var(--card);stroke-width:1;vector-effect:non-scaling-stroke}
.rows span{position:absolute;right:100%;margin-right:8px;transform:translateY(-50%);
font-size:12px;color:var(--soft);white-space:nowrap}
.legend li.span::before{height:10px;border-radius:3px}
"""


class Span(NamedTuple):
    """What a row does from start to end; `color` is one of theme.py's seven."""

    start: float
    end: float
    color: int


def timeline(
    title: str,
    unit: str,
    rows: Sequence[tuple[str, Sequence[Span]]],
    legend: Mapping[str, int],
    caption: str = "",
) -> str:
    """A figure of rows from time 0 to the last end; nothing of none. `legend` names colors."""
    last = max((span.end for _, spans in rows for span in spans), default=0.0)
    if not last:
        return ""
    items = "".join(
        f'<li class="span s{color}">{escape(name)}</li>' for name, color in legend.items()
    )
    height = 22 * len(rows)
    names = "".join(
        f'<span style="top:{100 * (i + 0.5) / len(rows):.2f}%">{escape(name)}</span>'
        for i, (name, _) in enumerate(rows)
    )
    drawn = "".join(_row(i, len(rows), spans, last) for i, (_, spans) in enumerate(rows))
    note = f'<p class="note">{escape(caption)}</p>' if caption else ""
    return (
        f'<figure class="card"><figcaption><b>{escape(title)}</b> '
        f'<span class="unit">{escape(unit)}</span><ul class="legend">{items}</ul></figcaption>'
        f'<div class="rows" style="height:{height}px"><svg viewBox="0 0 {SIZE} {SIZE}" '
        f'preserveAspectRatio="none" role="img" aria-label="{escape(title)}">{drawn}</svg>{names}'
        f"</div>{note}</figure>"
    )


def _row(place: int, count: int, spans: Sequence[Span], last: float) -> str:
    """One path for each color."""
    top, height = SIZE * (place + 0.1) / count, SIZE * 0.8 / count
    paths = dict[int, str]()
    for span in spans:
        left, width = SIZE * span.start / last, SIZE * (span.end - span.start) / last
        box = f"M{left:.1f} {top:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z"
        paths[span.color] = paths.get(span.color, "") + box
    return "".join(f'<path class="s{color}" d="{d}"/>' for color, d in sorted(paths.items()))
