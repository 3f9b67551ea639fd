"""What the model wrote, newest first: continuations as prose, chats as bubbles, all escaped."""

from collections.abc import Sequence

from abyssal.report.notation import escape, number
from abyssal.train.history import Sample
from abyssal.train.metrics import Metrics


def samples(metrics: Metrics) -> str:
    """Each prompt with its latest answer, and the earlier ones folded below."""
    prompts = dict.fromkeys((row.prompt, row.chat) for row in metrics.samples)
    cards = [
        _card(metrics, [row for row in metrics.samples if (row.prompt, row.chat) == key])
        for key in prompts
    ]
    return f'<div class="grid samples">{"".join(cards)}</div>' if cards else ""


def _card(metrics: Metrics, rows: Sequence[Sample]) -> str:
    *earlier, latest = rows
    folded = ""
    if earlier:
        older = "".join(_answer(metrics, row, with_prompt=False) for row in reversed(earlier))
        folded = f"<details><summary>Earlier: {len(earlier)}</summary>{older}</details>"
    kind, newest = "chat" if latest.chat else "prose", _answer(metrics, latest, with_prompt=True)
    return f'<article class="card {kind}">{newest}{folded}</article>'


def _answer(metrics: Metrics, row: Sample, *, with_prompt: bool) -> str:
    when = f"step {row.step:,} · {number(metrics.tokens_at(row.step))} tokens"
    text = f"<bdi>{escape(row.text)}</bdi>" if row.text.strip() else "<em>(nothing)</em>"
    if row.chat:
        asked = f'<p class="user"><bdi>{escape(row.prompt)}</bdi></p>' if with_prompt else ""
        return f'{asked}<p class="assistant">{text}</p><p class="when">{when}</p>'
    prompt = f"<b><bdi>{escape(row.prompt)}</bdi></b>"
    return f'<p class="text">{prompt}{text}</p><p class="when">{when}</p>'
