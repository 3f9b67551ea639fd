"""Our scores beside lm-eval's for the same model, item by item: BLiMP, ARC-easy and HellaSwag.

    python benchmarks/lm_eval_scores.py FOLDER [--tasks blimp,arc_easy] [--limit N]

lm-eval runs its own published tasks, on our data in the form its datasets have, through
`abyssal/evals/lm_eval.py`. Every log-likelihood and every right or wrong is compared for equality.
BLiMP is asked without the space that lm-eval sets before a sentence: text begins without one.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks.hellaswag import utils as hellaswag

from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.evals import catalog
from abyssal.evals.lm_eval import AbyssalLM
from abyssal.evals.run import Evaluation, sample
from abyssal.evals.task import Item, Task

PUBLISHED = Path(lm_eval.__file__).parent / "tasks"
NAMES = ("blimp", "arc_easy", "hellaswag")


class Compared(NamedTuple):
    """What became of one task."""

    items: int
    same_likelihoods: int  # items whose every log-likelihood is the same number
    same_scores: int  # ... and whose acc and acc_norm are
    ours: dict[str, float]
    theirs: dict[str, float]
    ours_s: float
    theirs_s: float


def compare(
    llm: LLM, folder: str | Path, limit: int | None, out: Path, names: Sequence[str] = NAMES
) -> dict[str, Compared]:
    """Both harnesses over the same samples; `out` is an empty folder."""
    tasks = [catalog.task(name) for name in names]
    evaluation = Evaluation(llm, folder, tasks, out / "ours", limit=limit)
    took: dict[str, float] = {}
    began = time.perf_counter()
    for step in evaluation.run():
        took[step.task] = time.perf_counter() - began
    found, before_s = {}, 0.0
    for task in tasks:
        theirs, theirs_s = _theirs(llm, task, limit, out)
        ours_s, before_s = took[task.name] - before_s, took[task.name]
        found[task.name] = _compared(evaluation.rows(task), theirs, ours_s, theirs_s)
    return found


def _theirs(llm: LLM, task: Task, limit: int | None, out: Path) -> tuple[dict[str, Any], float]:
    """lm-eval's own samples of a task, and the seconds they took."""
    data = out / f"{task.name}.jsonl"
    rows = [_PUBLISHED_FORM[task.name](item) for item in sample(task, limit)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = _config(task.name) | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    began = time.perf_counter()
    results = lm_eval.simple_evaluate(
        model=AbyssalLM(llm),
        tasks=[config],
        task_manager=TaskManager(include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    return results, time.perf_counter() - began


def _config(name: str) -> dict[str, Any]:
    """The task as lm-eval publishes it."""
    files = {"blimp": "blimp/_template_yaml", "arc_easy": "arc/arc_easy.yaml"}
    path = PUBLISHED / files.get(name, f"{name}/{name}.yaml")
    text = path.read_text(encoding="utf-8").replace("!function utils.process_docs", "null")
    config: dict[str, Any] = {"task": name, **yaml.safe_load(text)}
    config.pop("tag", None)
    if name == "blimp":
        config["target_delimiter"] = ""
    if name == "hellaswag":
        config["process_docs"] = hellaswag.process_docs
    return config


def _blimp(item: Item) -> dict[str, Any]:
    return {"sentence_good": item.data["good"], "sentence_bad": item.data["bad"]}


def _arc(item: Item) -> dict[str, Any]:
    labels = "ABCD"
    return {
        "question": item.data["question"],
        "choices": {"text": item.data["choices"], "label": list(labels)},
        "answerKey": labels[item.data["answer"]],
    }


def _hellaswag(item: Item) -> dict[str, Any]:
    """The context in its two published parts: whole sentences, and one that is begun."""
    before, dot, begun = item.data["ctx"].rpartition(". ")
    if not begun[:1].islower():
        before, dot, begun = item.data["ctx"], "", ""
    return {
        "activity_label": item.data["activity"],
        "ctx_a": before + dot.rstrip(),
        "ctx_b": begun,
        "endings": item.data["endings"],
        "label": str(item.data["label"]),
    }


_PUBLISHED_FORM: dict[str, Callable[[Item], dict[str, Any]]] = {
    "blimp": _blimp, "arc_easy": _arc, "hellaswag": _hellaswag,
}  # fmt: skip


def _compared(
    ours: list[dict[str, Any]], results: dict[str, Any], ours_s: float, theirs_s: float
) -> Compared:
    (name,) = results["samples"]
    theirs = sorted(results["samples"][name], key=lambda one: one["doc_id"])
    metrics = [metric for metric in ("acc", "acc_norm") if metric in ours[0]]
    same_likelihoods = same_scores = 0
    for mine, other in zip(ours, theirs, strict=True):
        told = [float(response[0]) for response in other["filtered_resps"]]
        same_likelihoods += told == mine["logprobs"]
        same_scores += all(other[metric] == mine[metric] for metric in metrics)
    return Compared(
        len(ours),
        same_likelihoods,
        same_scores,
        {metric: sum(row[metric] for row in ours) / len(ours) for metric in metrics},
        {metric: results["results"][name][f"{metric},none"] for metric in metrics},
        ours_s,
        theirs_s,
    )


def main() -> None:
    """Print a table; exit with 1 where anything differs."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder")
    options.add_argument("--tasks", default=",".join(NAMES))
    options.add_argument("--limit", type=int, default=None)
    args = options.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    llm = LLM(args.folder, options=EngineOptions(deterministic=True))
    with tempfile.TemporaryDirectory() as out:
        os.environ["HF_HOME"] = out
        found = compare(llm, args.folder, args.limit, Path(out), args.tasks.split(","))
    print("| task | items | same likelihoods | same scores | ours | lm-eval | ours | lm-eval |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, one in found.items():
        scores = (
            ", ".join(f"{metric} {value:.4f}" for metric, value in some.items())
            for some in (one.ours, one.theirs)
        )
        print(
            f"| {name} | {one.items} | {one.same_likelihoods} | {one.same_scores} "
            f"| {' | '.join(scores)} | {one.ours_s:.1f} s | {one.theirs_s:.1f} s |"
        )
    if any(
        one.same_scores < one.items or one.same_likelihoods < one.items for one in found.values()
    ):
        sys.exit(1)


if __name__ == "__main__":
    main()
