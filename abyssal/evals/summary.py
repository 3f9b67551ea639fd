"""Scores made of the lines an evaluation has left, and of nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from abyssal.evals.intervals import Interval, bootstrap, interval
from abyssal.evals.records import Row
from abyssal.evals.task import KIND, AnswerTask, Task, TextTask

METRICS = ("acc", "acc_norm", "pass@1")  # and those of several samples

Scores = dict[str, Any]


def summary(task: Task, rows: Sequence[Row]) -> Scores:
    """A task's scores with their intervals, in all and by domain."""
    domains = sorted({row["domain"] for row in rows if "domain" in row})
    parts = {
        name: _metrics(task, [row for row in rows if row.get("domain") == name]) for name in domains
    }
    return {
        "kind": KIND[type(task)],
        "about": asdict(task.about),
        "items": len(rows),
        "items_in_all": len(task.items()),
        "metrics": _metrics(task, rows),
        "domains": parts,
        **_troubles(task, rows),
    }


def _metrics(task: Task, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    if not rows:
        return {}
    if isinstance(task, TextTask):
        bits = [row["nats"] / math.log(2) for row in rows]
        return {"bits_per_byte": _plain(bootstrap(bits, [row["bytes"] for row in rows]))}
    names = [name for name in rows[0] if name in METRICS or name.startswith(("pass@", "cons@"))]
    return {name: _plain(interval([row[name] for row in rows])) for name in names}


def _plain(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _troubles(task: Task, rows: Sequence[Row]) -> Scores:
    """What makes a score worth less: questions that could not be asked, answers cut off."""
    if not isinstance(task, AnswerTask):
        return {}
    answers = [answer for row in rows for answer in row["answers"]]
    return {
        "errors": sum("error" in row for row in rows),
        "answers_cut_off": sum(answer["end"] == "length" for answer in answers),
    }


def table(results: Mapping[str, Scores]) -> list[tuple[str, ...]]:
    """Rows of task, items, metric, value, interval and chance, for people."""
    rows: list[tuple[str, ...]] = []
    for name, scores in results.items():
        of = scores["items_in_all"]
        count = f"{scores['items']:,}" if scores["items"] == of else f"{scores['items']:,}/{of:,}"
        for metric, found in scores["metrics"].items():
            low, high = found["low"], found["high"]
            chance = f"{scores['about']['chance']:g}" if metric != "bits_per_byte" else "-"
            value = f"{found['value']:.4f}"
            rows.append((name, count, metric, value, f"{low:.4f} to {high:.4f}", chance))
    return rows
