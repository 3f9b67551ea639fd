"""Distillation against reinforcement alone: a small student in equal minutes, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/distillation.py --arm rl --seed 1 --minutes 10
    python benchmarks/distillation.py --plot

Arms: "rl" (r1/small-zero), "traces" (r1/distill-traces on what the teacher answered right),
"logits" (r1/distill on the same traces) and "on-policy" (r1/distill on what the student answers).
All start from one student (`abyssal train r1/small`). The teacher's sampling and scoring count as
the arm's time, examinations count for none. Without --arm all arms of all seeds run one after
another. What was begun goes on; what is done is not run again. --plot prints a table and draws
docs/distillation.svg of what is there.
"""

import argparse
import json
import shutil
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import torch

from abyssal.checkpoint import files
from abyssal.data.documents import DropReport
from abyssal.data.encoding import write_encoded
from abyssal.engine.request import SamplingParams
from abyssal.evals.puzzles import prompt_of
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train.exercises import examine, judged
from abyssal.train.journal import Journal
from abyssal.train.machine import measure
from abyssal.train.questions import Questions
from abyssal.train.reinforce import GRPO
from abyssal.train.reinforcement import Reinforcement
from abyssal.train.reinforcer import Reinforcer
from abyssal.train.rollouts import Rollouts
from abyssal.train.trainer import Trainer
from abyssal.train.training import STAGES, Training

ARMS = {
    "rl": "r1/small-zero",
    "traces": "r1/distill-traces",
    "logits": "r1/distill",
    "on-policy": "r1/distill",
}
NAMES = {
    "rl": "RL alone",
    "traces": "traces",
    "logits": "logits on traces",
    "on-policy": "on-policy",
}
SEEDS = (1, 2, 3)
MARKS = 8  # examinations behind the one of the untouched student
ALWAYS = 10**9


def main() -> None:
    """Run what was asked for, or show what is there."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--arm", choices=ARMS)
    options.add_argument("--seed", type=int)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--traces", type=float, default=0.25, help="share of minutes for drawing")
    options.add_argument("--teacher", type=Path, default=Path("out/r1/zero"))
    options.add_argument("--student", type=Path, default=Path("out/r1/small"))
    options.add_argument("--out", type=Path, default=Path("out/distillation"))
    options.add_argument("--steps", type=int, help="of rl, which its schedule spans")
    options.add_argument("--change", nargs="*", default=[], help="of the arm's recipe: key=value")
    options.add_argument("--plot", nargs="?", type=Path, const=Path("docs/distillation.svg"))
    args = options.parse_args()
    if args.plot:
        _show(args.out, args.plot)
        return
    torch.set_num_threads(1)
    for seed in SEEDS if args.seed is None else (args.seed,):
        for arm in ARMS if args.arm is None else (args.arm,):
            _run(arm, seed, args)


def _run(arm: str, seed: int, args: argparse.Namespace) -> None:
    """One arm of one seed: draw traces, learn, then examine what was saved on the way."""
    folder = args.out / f"{arm}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = Reinforcement(ARMS["rl"], {"out": folder / "none"}).run
    if not (folder / f"mark-{MARKS}" / "minutes.json").is_file():
        spent_s = _traces(folder, seed, tasks, args) if arm in ("traces", "logits") else 0.0
        _learn(_begin(arm, seed, spent_s, folder, args), folder, spent_s, args)
    _examine(folder, tasks, args.student)


def _traces(folder: Path, seed: int, tasks: GRPO, args: argparse.Namespace) -> float:
    """Let the teacher answer for a share of the time; its right answers -> shards, and seconds."""
    done = folder / "traces.json"
    if done.is_file():
        return float(files.read_json(done)["seconds"])
    shutil.rmtree(folder / "traces", ignore_errors=True)
    began = time.monotonic()
    tokenizer = Tokenizer.load(args.teacher)
    teacher = DeepSeekV3.load(args.teacher).eval()
    rollouts = Rollouts(teacher, tokenizer, running=tasks.running)
    questions = Questions(tasks.tasks, 1000 + seed, 1)
    kept: list[tuple[list[int], list[bool]]] = []
    params = SamplingParams(max_tokens=tasks.max_tokens, temperature=1.0)
    asked = 0
    while time.monotonic() - began < 60 * args.minutes * args.traces:
        puzzles = questions.next(tasks.running, asked)
        prompts = [prompt_of(puzzle.question) for puzzle in puzzles]
        drawn = rollouts.draw(prompts, params, (1000 + seed, asked))
        asked += len(puzzles)
        for puzzle, answers in zip(puzzles, drawn, strict=True):
            group = judged(puzzle, answers, tasks.max_tokens, tasks.rewards)
            if group.parts[0].accuracy == 1:
                (one,) = answers
                mask = [False] * len(one.prompt) + [True] * len(one.tokens)
                kept.append(([*one.prompt, *one.tokens], mask))
    write_encoded(folder / "traces", kept, tokenizer, DropReport(total=asked))
    seconds = time.monotonic() - began
    files.publish_json(done, {"seconds": seconds, "asked": asked, "kept": len(kept)})
    print(f"{folder.name}: {len(kept)} of {asked} traces kept in {seconds:.0f} s", flush=True)
    return seconds


def _begin(
    arm: str, seed: int, spent_s: float, folder: Path, args: argparse.Namespace
) -> Training | Reinforcement:
    """The run of an arm, its recipe with the time that is left."""
    changes = [
        f'out="{folder / "run"}"',
        f'init="{args.student}"',
        f"seed={seed}",
        f"minutes={args.minutes - spent_s / 60}",
        f"eval_every={ALWAYS}",  # what is kept on the way is examined afterwards
        'precision="bfloat16"',  # not whatever was faster beside the other arms
    ]
    if arm == "rl":
        changes += [f"steps={args.steps or ALWAYS}", "held_out=1"]
        return Reinforcement(ARMS[arm], [*changes, *args.change])
    changes += [f'tokenizer="{args.student}"', "tokens=1e12"]
    if arm != "traces":
        changes += [f'teacher="{args.teacher}"', f"on_policy={int(arm == 'on-policy')}.0"]
        changes.append("held_out=1")
    shards = f'[{{name="traces", shards="{folder / "traces"}"}}]'
    changes.append('data="none"' if arm == "on-policy" else f"data.sources={shards}")
    return Training(ARMS[arm], [*changes, *args.change])


def _learn(
    run: Training | Reinforcement, folder: Path, spent_s: float, args: argparse.Namespace
) -> None:
    """Take the steps that are left; keep the model at every mark and at the end."""
    tokenizer, machine = Tokenizer.load(args.student), measure(run.place.precision())
    if isinstance(run, Reinforcement):
        loop: object = Reinforcer(run.run, DeepSeekV3.load(args.student), tokenizer, machine)
    else:
        loop = STAGES[run.stage].begin(run.run, tokenizer, machine)
    assert isinstance(loop, (Trainer, Reinforcer))
    run.place.open(machine)
    loop.resume()
    with Journal(run.folder) as journal:
        for step in loop.steps(journal):
            minutes = (spent_s + loop.elapsed_s) / 60
            mark = min(MARKS - 1, int(minutes / args.minutes * MARKS))
            if mark:
                _keep(loop.model, folder, mark, minutes, step.step)
            if step.step % 50 == 0:
                print(f"{folder.name}: {minutes:.1f} minutes, step {step.step}", flush=True)
    if not loop.is_finished:
        raise SystemExit(f"{folder.name}: stopped and saved; the same command goes on")
    _keep(loop.model, folder, MARKS, (spent_s + loop.elapsed_s) / 60, loop.step)


def _keep(model: DeepSeekV3, folder: Path, mark: int, minutes: float, step: int) -> None:
    kept = folder / f"mark-{mark}"
    if not (kept / "minutes.json").is_file():
        model.save(kept)
        files.publish_json(kept / "minutes.json", {"minutes": minutes, "step": step})


def _examine(folder: Path, tasks: GRPO, student: Path) -> None:
    """Greedy answers of every kept model to the held-out questions, 200 of each task."""
    held_out = Questions(tasks.tasks, tasks.seed, tasks.held_out).held_out
    rows = []
    for mark in range(MARKS + 1):
        kept = folder / f"mark-{mark}" if mark else student
        if mark and not (kept / "minutes.json").is_file():
            continue  # a mark that passed within one step
        done = folder / f"mark-{mark}.json"
        if not done.is_file():
            told = files.read_json(kept / "minutes.json") if mark else {"minutes": 0.0, "step": 0}
            tokenizer, model = Tokenizer.load(student), DeepSeekV3.load(kept)
            rollouts = Rollouts(model, tokenizer, running=tasks.running)
            groups = examine(held_out, rollouts, tasks.max_tokens, tasks.rewards)
            right = defaultdict(list)
            for group in groups:
                right[group.puzzle.task].append(group.parts[0].accuracy)
            shares = {task: fmean(each) for task, each in right.items()}
            files.publish_json(done, {"mark": mark, **told, "accuracy": shares})
        rows.append(files.read_json(done))
    for row in rows:
        shares = ", ".join(f"{task} {share:.1%}" for task, share in row["accuracy"].items())
        print(f"{folder.name}: {row['minutes']:.2f} minutes, step {row['step']}: {shares}")


def _show(out: Path, path: Path) -> None:
    """Accuracy at the end, mean over seeds and their spread; the curves of all arms."""
    found: dict[str, dict[int, list[dict]]] = {}
    for arm in ARMS:
        rows = [json.loads(p.read_text()) for p in sorted(out.glob(f"{arm}-[0-9]*/mark-*.json"))]
        by_mark: dict[int, list[dict]] = defaultdict(list)
        for row in rows:
            by_mark[row["mark"]].append(row)
        if by_mark:
            found[arm] = dict(sorted(by_mark.items()))
    print("| arm | seeds | accuracy at first | at the end | lowest, highest | by task |")
    print("| --- | --- | --- | --- | --- | --- |")
    for arm, by_mark in found.items():
        first, last = by_mark[0], by_mark[max(by_mark)]
        ends = [_mean(row) for row in last]
        spread = f" ± {stdev(ends):.1%}" if len(ends) > 1 else ""
        tasks = (
            f"{task} {fmean(row['accuracy'][task] for row in last):.1%}"
            for task in last[0]["accuracy"]
        )
        print(
            f"| {NAMES[arm]} | {len(ends)} | {fmean(map(_mean, first)):.1%} "
            f"| {fmean(ends):.1%}{spread} | {min(ends):.1%}, {max(ends):.1%} | {', '.join(tasks)} |"
        )
    _draw(found, path)


def _mean(row: dict) -> float:
    """Over tasks."""
    return fmean(row["accuracy"].values())


def _draw(found: dict[str, dict[int, list[dict]]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for arm, by_mark in found.items():
        minutes = [fmean(row["minutes"] for row in rows) for rows in by_mark.values()]
        shares = [[100 * _mean(row) for row in rows] for rows in by_mark.values()]
        (line,) = axes.plot(minutes, [fmean(each) for each in shares], "o-", ms=3, label=NAMES[arm])
        low, high = [min(each) for each in shares], [max(each) for each in shares]
        axes.fill_between(minutes, low, high, alpha=0.2, color=line.get_color(), lw=0)
    axes.set(xlabel="minutes on one thread", ylabel="right, held out (%)", ylim=(0, 100))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
