"""R1-Zero at the scale of two CPU cores: held-out accuracy against minutes, over several seeds.

    python benchmarks/reinforcement.py --seeds 1 2 3          # two at a time, a thread each
    python benchmarks/reinforcement.py --seeds 3 --minutes 40 # twice the time: does it hold?
    python benchmarks/reinforcement.py --plot                 # table and curve of what is there

Runs r1/zero from out/r1/base (`abyssal prepare --puzzles --out out/r1`, `abyssal train r1/base`),
resuming what is there, and writes docs/r1-zero.svg: each task's accuracy on 200 questions that are
held out, the mean over seeds and the range between the worst and the best.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from abyssal.train.metrics import Metrics, read_metrics

Curve = tuple[np.ndarray, np.ndarray]  # minutes, shares
ALL = "both tasks"


class Arm(NamedTuple):
    """One run, and how it went."""

    seed: int
    metrics: Metrics

    def curve(self, task: str) -> Curve:
        """Minutes and shares of right answers at each examination."""
        elapsed = {step.step: step.elapsed_s / 60 for step in self.metrics.steps} | {0: 0.0}
        exams: dict[int, list[float]] = {}
        for row in self.metrics.examinations:
            if task in (row.name, ALL):
                exams.setdefault(row.step, []).append(row.right / row.asked)
        steps = sorted(exams)
        return np.array([elapsed[s] for s in steps]), np.array([mean(exams[s]) for s in steps])


def main() -> None:
    """Run what is not there yet, then print and draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--minutes", type=float, default=20.0)
    options.add_argument("--at-once", type=int, default=2, help="runs beside each other (2)")
    options.add_argument("--init", type=Path, default=Path("out/r1/base"))
    options.add_argument("--out", type=Path, default=Path("out/reinforcement"))
    options.add_argument("--plot", action="store_true", help="run nothing")
    options.add_argument("overrides", nargs="*", help="of r1/zero, such as optim.lr=2e-4")
    args = options.parse_args()
    if not args.plot:
        with ThreadPoolExecutor(args.at_once) as pool:
            list(pool.map(lambda seed: _run(seed, args), args.seeds))
    arms = [_read(folder) for folder in sorted(args.out.glob("seed-*")) if _began(folder)]
    _table(arms)
    _draw(arms, Path("docs/r1-zero.svg"))


def _run(seed: int, args: argparse.Namespace) -> None:
    folder = args.out / f"seed-{seed}-{args.minutes:g}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "abyssal", "train", "r1/zero", f"out={folder}", f"init={args.init}",
        f"seed={seed}", f"minutes={args.minutes}", *args.overrides,
    ]  # fmt: skip
    threads = max(1, (os.cpu_count() or 1) // args.at_once)
    with (args.out / f"{folder.name}.log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def _began(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file()


def _read(folder: Path) -> Arm:
    return Arm(int(folder.name.split("-")[1]), read_metrics(folder))


def _tasks(arms: list[Arm]) -> list[str]:
    return [ALL, *dict.fromkeys(row.name for arm in arms for row in arm.metrics.examinations)]


def _table(arms: list[Arm]) -> None:
    print("| seed | minutes | steps | task | at first | at the end | best | in form, drawn |")
    print("|---|---|---|---|---|---|---|---|")
    for arm in arms:
        formed = [f"{mean(r.format for r in rows):.0%}" for rows in _ends(arm)]
        for task in _tasks(arms):
            minutes, shares = arm.curve(task)
            steps = arm.metrics.reinforcements[-1].step
            print(
                f"| {arm.seed} | {minutes[-1]:.0f} | {steps} | {task} | {shares[0]:.1%} "
                f"| {shares[-1]:.1%} | {max(shares):.1%} | {' to '.join(formed)} |"
            )


def _ends(arm: Arm) -> tuple[list, list]:
    rows = arm.metrics.reinforcements
    return rows[:5], rows[-20:]


def _draw(arms: list[Arm], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.8))
    for color, task in enumerate(_tasks(arms)):
        curves = [arm.curve(task) for arm in arms]
        least = min(minutes[-1] for minutes, _ in curves)  # to where all runs went
        at = np.linspace(0, least, 60)
        rows = np.array([np.interp(at, minutes, 100 * shares) for minutes, shares in curves])
        axes.fill_between(at, rows.min(0), rows.max(0), color=f"C{color}", alpha=0.2, lw=0)
        axes.plot(at, rows.mean(0), color=f"C{color}", label=task)
        for minutes, shares in curves:
            beyond = minutes >= least
            axes.plot(minutes[beyond], 100 * shares[beyond], color=f"C{color}", lw=0.8, ls=":")
    axes.set(xlabel="minutes, one thread", ylabel="right, % of held-out questions", ylim=(0, 100))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
