"""Bars: shares of one beside each other, each with its interval and what guessing would give.

HTML alone, as wide as the page; values stand behind the bars. A page that has some adds CSS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from abyssal.report.notation import escape

CSS = """
.bars{display:grid;grid-template-columns:minmax(6em,max-content) 1fr max-content;gap:7px 14px;
align-items:center;font-size:14px;font-variant-numeric:tabular-nums}
.bars span{overflow-wrap:anywhere}
.track{position:relative;height:18px;border-radius:4px;background:var(--grid)}
.track i{position:absolute;top:0;bottom:0;left:0;border-radius:4px;background:var(--s1)}
.track b{position:absolute;top:8px;height:2px;background:var(--ink)}
.track s{position:absolute;top:-3px;bottom:-3px;width:2px;background:var(--s2)}
.bars .num{color:var(--soft)}
@media (max-width:600px){.bars{grid-template-columns:1fr max-content;grid-auto-flow:dense}
.bars .track{grid-column:1/-1}}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A share and where the true one may lie, all in [0, 1]."""

    name: str
    value: float
    low: float
    high: float
    chance: float | None = None  # what guessing gives; None: no line


def bars(title: str, unit: str, rows: Sequence[Bar], caption: str = "") -> str:
    """A figure of bars in order; nothing of none."""
    if not rows:
        return ""
    note = f'<p class="note">{escape(caption)}</p>' if caption else ""
    return (
        f'<figure class="card"><figcaption><b>{escape(title)}</b> '
        f'<span class="unit">{escape(unit)}</span></figcaption>'
        f'<div class="bars">{"".join(map(_row, rows))}</div>{note}</figure>'
    )


def _row(bar: Bar) -> str:
    chance = "" if bar.chance is None else f'<s style="left:{_percent(bar.chance)}"></s>'
    interval = f'<b style="left:{_percent(bar.low)};width:{_percent(bar.high - bar.low)}"></b>'
    said = f"{100 * bar.value:.1f}% ({100 * bar.low:.1f} to {100 * bar.high:.1f})"
    return (
        f'<span>{escape(bar.name)}</span><div class="track" role="img" '
        f'aria-label="{escape(f"{bar.name}: {said}")}">'
        f'<i style="width:{_percent(bar.value)}"></i>{interval}{chance}</div>'
        f'<span class="num">{said}</span>'
    )


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
