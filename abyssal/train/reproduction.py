"""How to train it again: the recipe of a run as a table, and as a TOML file with its commands."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping

from abyssal.report.notation import escape
from abyssal.train.metrics import Metrics


def recipe_table(metrics: Metrics) -> str:
    """Every value of the recipe beside its dotted key."""
    if not (metrics.start and metrics.start.recipe):
        return ""
    rows = (
        f"<tr><td><code>{escape(key)}</code></td><td><code>{escape(_toml_value(value))}</code></td></tr>"
        for key, value in _flat(metrics.start.recipe, "")
    )
    return f'<div class="scroll"><table class="recipe"><tbody>{"".join(rows)}</tbody></table></div>'


def reproduce(runs: list[Metrics]) -> str:
    """The commands in order, and the recipe files they need."""
    steps = []
    for position, metrics in enumerate(runs, start=1):
        if not (metrics.start and metrics.start.recipe):
            continue
        stage = metrics.start.stage
        recipe = {"stage": stage, **metrics.start.recipe}
        file = f"{position}-{re.sub('[^a-z0-9]+', '-', stage.lower()).strip('-')}.toml"
        steps.append(
            f"<li><p>Save as <code>{file}</code>, then</p>"
            f"<pre>abyssal train {file}</pre>"
            f"<details><summary>{file}</summary><pre>{escape(toml(recipe))}</pre></details>"
            f"</li>"
        )
    if not steps:
        return ""
    out = next((m.start.recipe.get("out") for m in reversed(runs) if m.start), None)
    if isinstance(out, str):
        steps.append(
            f"<li><p>Use it</p><pre>{escape(f'abyssal chat {shlex.quote(out)}')}</pre></li>"
        )
    return f'<ol class="steps">{"".join(steps)}</ol>'


def toml(values: Mapping[str, object]) -> str:
    """A recipe as TOML that reads back as the same values; None is written "none"."""
    return "\n".join(_table(values, ())).strip() + "\n"


def _table(values: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    if path and (plain or not values):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_toml_value(value)}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _table(value, (*path, key))


def _flat(values: Mapping[str, object], table: str) -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        name = f"{table}.{key}" if table else key
        if isinstance(value, Mapping) and value:
            yield from _flat(value, name)
        else:
            yield name, value


def _toml_value(value: object) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_toml_value(one)}" for key, one in value.items())
        return f"{{{inside}}}"
    if isinstance(value, str):
        return _quoted(value)
    return str(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)


def _quoted(text: str) -> str:
    """JSON's escapes are TOML's, except that TOML wants DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
