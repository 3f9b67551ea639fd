"""An evaluation as one HTML file: scores with their intervals, what they are made of, samples.

Made of the folder alone (records.py): results.json, the lines of every task, and the maps of a
search for needles where OUT/needle or OUT itself holds one. Equal folders give equal bytes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from abyssal.errors import DataError
from abyssal.evals import needle
from abyssal.evals.records import RESULTS, Row
from abyssal.evals.summary import table as scores_table
from abyssal.report import heatmap
from abyssal.report.bars import CSS, Bar, bars
from abyssal.report.heatmap import EVEN_SHARES, heat_map
from abyssal.report.notation import escape, two_decimals
from abyssal.report.page import Section, document, table, write

SAMPLES = 3  # right ones and wrong ones shown of each task
LONGEST = 1500  # letters of a sample's text
PAGE = "report.html"

Results = dict[str, Any]


def write_page(out: str | Path, title: str = "Evaluation") -> Path:
    """Write OUT/report.html and say where it is.

    Raises:
        DataError: there is nothing to show, or a file is broken or cannot be written.
    """
    out = Path(out)
    write(out / PAGE, page(out, title))
    return out / PAGE


def page(out: Path, title: str) -> str:
    """The page of an evaluation folder."""
    found, maps = _results(out), _results(out / needle.NAME)
    if "lengths" in found:
        found, maps = {}, found
    if not found and not maps:
        raise DataError(f"{out} holds no {RESULTS}; run `abyssal eval` to its end first")
    tasks: dict[str, Results] = found.get("tasks", {})
    sections = [Section("scores", "Scores", _scores(tasks))]
    for place, (name, scores) in enumerate(tasks.items(), 1):
        sections.append(Section(f"task{place}", name, _task(out, name, scores)))
    sections += [
        Section("needle", "Needle in a haystack", _needles(maps)),
        Section("experts", "Experts", _experts(found.get("experts", {}))),
        Section("mtp", "Guessing ahead", _drafts(found.get("mtp", []))),
    ]
    return document(title, _lede(found, maps), sections, CSS)


def _results(folder: Path) -> Results:
    """results.json of a folder; empty where there is none."""
    path = folder / RESULTS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is broken ({error}); delete it and run again") from error
    return found if isinstance(found, dict) else {}


def _lede(found: Results, maps: Results) -> str:
    said = []
    if found:
        settings = ", ".join(f"{key} {value}" for key, value in found["settings"].items())
        said.append(f"Model {found['model'][:12]}; {settings}.")
        said.append("Intervals hold the true score 95 times in 100.")
    if maps:
        said.append(f"{maps['trials']} needles at each of {len(maps['depths'])} depths.")
    return " ".join(said)


def _scores(tasks: dict[str, Results]) -> str:
    rows = [
        Bar(name=f"{name}, {metric}", chance=scores["about"]["chance"], **values)
        for name, scores in tasks.items()
        for metric, values in scores["metrics"].items()
        if metric != "bits_per_byte"
    ]
    head = ("Task", "Items", "Metric", "Score", "95% interval", "Chance")
    return bars("All tasks", "share right; the line is chance", rows) + table(
        head, scores_table(tasks), 5
    )


def _task(out: Path, name: str, scores: Results) -> str:
    """What a task is, its parts, and some of its samples."""
    about = scores["about"]
    said = [about["protocol"], about["source"], about["license"], about["caveat"]]
    if scores.get("errors"):
        said.append(f"questions that could not be asked, counted as wrong: {scores['errors']:,}")
    if scores.get("answers_cut_off"):
        said.append(f"answers cut off at their longest: {scores['answers_cut_off']:,}")
    parts = "".join(f"<p>{escape(text[:1].upper() + text[1:])}.</p>" for text in said if text)
    return parts + _domains(scores) + _samples(_rows(out / f"{name.replace(':', '-')}.jsonl"))


def _domains(scores: Results) -> str:
    """Languages, subjects or paradigms, the best first."""
    domains: Results = scores["domains"]
    if not domains:
        return ""
    metric = next(iter(scores["metrics"]))
    if metric == "bits_per_byte":
        rows = [(name, two_decimals(one[metric]["value"])) for name, one in domains.items()]
        return table(("Part", "Bits per byte"), rows, 1)
    ranked = sorted(domains.items(), key=lambda one: (-one[1][metric]["value"], one[0]))
    chance = scores["about"]["chance"]
    rows_of_bars = [Bar(name=name, chance=chance, **one[metric]) for name, one in ranked]
    return bars("By part", f"{metric}, best first; the line is chance", rows_of_bars)


# Samples


def _rows(path: Path) -> Iterator[Row]:
    """The lines of a task."""
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); run again") from error
    except ValueError as error:
        raise DataError(f"{path} has a broken line ({error}); run again") from error


def _samples(rows: Iterator[Row]) -> str:
    """The first right ones and the first wrong ones, in the order they were asked."""
    right, wrong = list[Row](), list[Row]()
    for row in rows:
        score = row.get("acc", row.get("pass@1"))
        if score is None:  # a text is neither
            return ""
        kept = right if score > 0 else wrong
        if len(kept) < SAMPLES:
            kept.append(row)
        if len(right) == len(wrong) == SAMPLES:
            break
    shown = ""
    for heading, kept in (("Right", right), ("Wrong", wrong)):
        if kept:
            cards = "".join(map(_card, kept))
            shown += f'<h3>{heading}</h3><div class="grid samples">{cards}</div>'
    return shown


def _card(row: Row) -> str:
    inside = _endings(row) if "endings" in row else _answers(row)
    asked = f'<p class="text">{_text(row["prompt"])}</p>'
    where = " · ".join(str(row[key]) for key in ("id", "domain") if key in row)
    return (
        f'<article class="card prose">{asked}{inside}<p class="when">{escape(where)}</p></article>'
    )


def _endings(row: Row) -> str:
    """Endings, the likeliest first, and which is right."""
    order = sorted(range(len(row["endings"])), key=lambda i: -row["logprobs"][i])
    rows = (
        (row["endings"][i], "right" if i == row["right"] else "", f"{row['logprobs'][i]:.2f}")
        for i in order
    )
    return table(("Ending", "", "Log-probability"), rows, 1)


def _answers(row: Row) -> str:
    if "error" in row:
        return f'<p class="assistant">{_text(row["error"])}</p>'
    return "".join(
        f'<p class="assistant">{_text(answer["text"])}</p>'
        f'<p class="when">grade {answer["grade"]:g}</p>'
        for answer in row["answers"][:SAMPLES]
    )


def _text(text: str) -> str:
    """A text as text, its middle left out where it is long."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return f"<bdi>{escape(text)}</bdi>" if text.strip() else "<em>(nothing)</em>"


# Maps


def _needles(found: Results) -> str:
    if not found:
        return ""
    maps = "".join(needle.figure(found, metric) for metric in needle.METRICS)
    rows = [
        Bar(name=f"{length:,} tokens, {metric}", chance=found["chance"][metric] or None, **one)
        for metric in needle.METRICS
        for length, one in zip(found["lengths"], found[metric]["by_length"], strict=True)
    ]
    return (
        bars("By length", "share of keys found; the line is chance", rows)
        + heatmap.legend(needle.EDGES, "share of keys found")
        + f'<div class="grid maps">{maps}</div>'
    )


def _experts(found: Results) -> str:
    """A map for each MoE layer: a column a domain, a row an expert."""
    if not found:
        return ""
    names, one_by_one = list(found["domains"]), list(found["domains"].values())
    special: Sequence[float] = found["specialization"]
    maps = ""
    for layer, share in enumerate(special):
        loads = [domain["tokens_by_layer_and_expert"][layer] for domain in one_by_one]
        columns = [[len(load) * tokens / sum(load) for tokens in load] for load in loads]
        remarks = [
            [name, f"busiest: expert {column.index(max(column))}, {max(column):.2f} even shares",
             f"{domain['from_uniform'][layer]:.1%} from uniform"]
            for name, column, domain in zip(names, columns, one_by_one, strict=True)
        ]  # fmt: skip
        maps += heat_map(
            columns, EVEN_SHARES, remarks, name=f"MoE layer {layer}",
            label=f"MoE layer {layer}: load of {len(columns[0])} experts in {len(names)} domains",
            caption=f"the expert tells {share:.1%} of the domain",
        )  # fmt: skip
    order = escape(", ".join(names))
    return (
        "<p>How the load of the routed experts differs between domains, in even shares: 1 is "
        f"balanced. Columns, left to right: {order}.</p>"
        f"{heatmap.legend(EVEN_SHARES, 'load, in even shares')}"
        f'<div class="grid maps">{maps}</div>'
    )


def _drafts(found: Sequence[Results]) -> str:
    rows = [
        Bar(name=f"{one['ahead']} ahead", value=one["share"], low=one["low"], high=one["high"])
        for one in found
        if one["drafted"]
    ]
    return bars("MTP", "drafts that the model then wrote itself, with all before them", rows)
