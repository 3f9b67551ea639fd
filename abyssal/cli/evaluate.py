"""The verb that measures how good a model is, on tasks and on texts."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.cli.options import (
    ChatLayout,
    Folder,
    Json,
    Thinking,
    check_folder,
    layout_for,
    open_llm,
)
from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal.evals.run import Evaluation

_TEMPLATES = ("text", "chat", "r1-zero")


def eval(
    folder: Folder = DEMO,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, with commas between them; list: say which there are."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Samples of each task; all without it.", metavar="N")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Where scores go, or go on; without it, FOLDER/eval.", metavar="DIR"),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(help="Answers to each question: pass@1, pass@N, cons@N.", metavar="N"),
    ] = 1,
    template: Annotated[
        str, typer.Option(help="How questions are put: text, chat or r1-zero.")
    ] = "text",
    layout: ChatLayout = None,
    thinking: Thinking = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Longest answer, in tokens; without it, the task's own.", metavar="N"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.", metavar="N")] = 0,
    bpb: Annotated[
        str | None,
        typer.Option(help="Instead: bits per byte of a .txt or .jsonl file.", metavar="FILE"),
    ] = None,
    json: Json = False,
) -> None:
    """Measure how good a model is, with 95% confidence intervals.

    Choices are judged by likelihood, answers by exact match: greedy, or with
    --samples as DeepSeek-R1 was (temperature 0.6, top-p 0.95). Every sample is
    a line in DIR; after a stop, run the same command again. A limit takes a
    fixed random sample, and a larger one goes on behind it.
    """
    if tasks == "list":
        _list(json)
        return
    if (tasks is None) == (bpb is None):
        raise RequestError("expected either --tasks NAMES or --bpb FILE; --tasks list shows all")
    check_folder(folder)
    if bpb is not None:
        _bits_per_byte(folder, bpb, json)
        return
    asked: dict[str, Any] = {
        "template": template,
        "layout": layout_for(folder, layout),
        "thinking": thinking,
        "samples": samples,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    _tasks(folder, tasks or "", asked, limit, out or f"{folder}/eval", json)


def _tasks(
    folder: str, tasks: str, asked: dict[str, Any], limit: int | None, out: str, as_json: bool
) -> None:
    """Put tasks to the model of a folder, and show how it did."""
    from abyssal.engine.options import EngineOptions
    from abyssal.evals import catalog
    from abyssal.evals.page import write_page
    from abyssal.evals.run import Evaluation, Settings, check_limit

    if asked["template"] not in _TEMPLATES:
        raise RequestError(f"template={asked['template']!r}, expected {', '.join(_TEMPLATES)}")
    check_limit(limit)
    wanted = catalog.tasks(tasks)
    settings = Settings(**asked)
    llm = open_llm(folder, EngineOptions(deterministic=True))
    evaluation = Evaluation(llm, folder, wanted, out, settings, limit)
    _run(evaluation)
    results = evaluation.results()
    page = write_page(evaluation.out)
    if as_json:
        console.show_json(results)
    else:
        _show(results)
        console.note(f"samples and results.json: {evaluation.out}; as a page: {page}")


def _run(evaluation: "Evaluation") -> None:
    """Every task under a bar of its own; a signal ends the command with 128 + its number."""
    from contextlib import closing
    from itertools import groupby

    with console.resumable() as stopping, closing(evaluation.run()) as steps:
        for name, some in groupby(steps, lambda step: step.task):
            with console.progress(name, 1) as bar:
                for step in some:
                    note = f"{console.number(step.done)} of {console.number(step.total)}"
                    bar.at(step.done, total=step.total, note=note)
                    if stopping.signal is not None:
                        break
            if stopping.signal is not None:
                break


def _list(as_json: bool) -> None:
    from abyssal.evals import catalog

    found = catalog.described()
    if as_json:
        console.show_json({str(row.pop("task")): row for row in found})
        return
    for row in found:
        chance = "" if row["task"] == "stories" else f", chance {row['chance']:g}"
        console.say(f"{row['task']}  ({console.number(int(str(row['items'])))} items{chance})")
        console.say(f"    {row['protocol']}")
        console.say(f"    {row['source']}; {row['license']}")
        if row["caveat"]:
            console.say(f"    {row['caveat']}")
    console.note("rg:NAME takes any other generator of reasoning-gym")


def _show(results: dict[str, Any]) -> None:
    from abyssal.evals.summary import table

    header = ("task", "items", "metric", "score", "95% interval", "chance")
    console.table("", header, table(results["tasks"]))
    for name, scores in results["tasks"].items():
        _note(name, scores)
    if "experts" in results:
        _show_experts(results["experts"])
    if "mtp" in results:
        rows = [
            (f"{row['ahead']}", f"{row['share']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")
            for row in results["mtp"]
        ]
        console.table("tokens ahead", ("position", "accepted", "95% interval"), rows)


def _note(name: str, scores: dict[str, Any]) -> None:
    """What must be known to read a score."""
    if scores["about"]["caveat"]:
        console.note(f"{name}: {scores['about']['caveat']}")
    if scores.get("errors"):
        count = console.number(scores["errors"])
        console.note(f"{name}: {count} questions were too long to be asked and count as wrong")
    if scores.get("answers_cut_off"):
        count = console.number(scores["answers_cut_off"])
        console.note(f"{name}: {count} answers ended at their last token; --max-tokens raises it")


def _show_experts(experts: dict[str, Any]) -> None:
    """Distance from an even load by layer, and what experts say of domains."""
    layers = len(experts["specialization"])
    header = ("experts: distance from an even load", *(f"layer {i}" for i in range(layers)))
    rows = [
        (name, *(f"{away:.3f}" for away in found["from_uniform"]))
        for name, found in experts["domains"].items()
    ]
    if len(rows) > 1:
        rows.append(("specialization", *(f"{one:.4f}" for one in experts["specialization"])))
    console.table("", header, rows)


def _bits_per_byte(folder: str, path: str, as_json: bool) -> None:
    from abyssal.data.documents import DropReport, read_documents
    from abyssal.evals.harness import bits_per_byte_of_file

    next(iter(read_documents(path, DropReport())), None)  # a file that is not there, told at once
    result, report = bits_per_byte_of_file(open_llm(folder), path)
    if report.dropped:
        console.note(report.summary())
    names = ("bits_per_byte", "bytes", "tokens", "documents")
    found = {name: getattr(result, name) for name in names}
    if as_json:
        console.show_json(found)
    else:
        console.say(f"bits per byte  {result.bits_per_byte:.4f}")
        rest = ", ".join(f"{console.number(found[name])} {name}" for name in names[1:])
        console.note(f"{rest}; perplexity {result.perplexity:.2f} per token")


VERBS = (
    Verb(
        eval,
        (
            "abyssal eval --tasks list",
            "abyssal eval --tasks blimp,arc_easy --limit 1000",
            "abyssal eval out/r1/zero --tasks rg:chain_sum --template r1-zero --samples 8",
            "abyssal eval out/tiny/base --bpb held-out.jsonl --json",
        ),
    ),
)
