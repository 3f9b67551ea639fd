"""Expert balance with and without the bias update: the tiny recipe at several speeds gamma.

    python benchmarks/balance.py [--tokens 1.2e6] [--out out/balance]

Runs tiny/base once for each gamma over the demo's shards (from `abyssal demo`) and writes
docs/balance.svg (MaxVio over the run) and a table: MaxVio of the last quarter, the idlest share
of an even load, and held-out bits per byte.
"""

import argparse
from pathlib import Path
from statistics import mean

from abyssal.train.metrics import Metrics, read_metrics
from abyssal.train.training import Training

GAMMAS = (0.0, 0.001, 0.003, 0.01)


def main() -> None:
    """Run all arms that are not there yet, then print and draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tokens", type=float, default=1.2e6)
    options.add_argument("--out", type=Path, default=Path("out/balance"))
    options.add_argument("--demo", type=Path, default=Path("out/demo"))
    args = options.parse_args()
    runs = {gamma: _run(gamma, args) for gamma in GAMMAS}
    print("| gamma | MaxVio, last quarter | worst layer | idlest expert | held-out bits per byte |")
    print("| --- | --- | --- | --- | --- |")
    for gamma, metrics in runs.items():
        late = metrics.steps[-len(metrics.steps) // 4 :]
        loads = metrics.loads[-len(metrics.loads) // 4 :]
        idlest = min(min(row) * len(row) for load in loads for row in load.load)
        print(
            f"| {gamma:g} | {mean(s.max_violation or 0 for s in late):.3f} "
            f"| {mean(s.max_violation_worst or 0 for s in late):.3f} | {idlest:.0%} of even "
            f"| {metrics.evaluations[-1].bits_per_byte:.3f} |"
        )
    _draw(runs, Path("docs/balance.svg"))


def _run(gamma: float, args: argparse.Namespace) -> Metrics:
    data = args.demo / "data"
    curve = f"[{{until=1, start={gamma}, to={gamma / 10}, shape='linear'}}]"
    training = Training(
        "tiny/base",
        [
            f'out="{args.out / f"gamma-{gamma:g}"}"',
            f'tokenizer="{args.demo / "tokenizer"}"',
            f'data.sources=[{{name="stories", shards="{data / "stories"}"}}]',
            f'data.held_out=[{{name="stories", shards="{data / "valid"}"}}]',
            f"balance.gamma={curve}",
            "balance.alpha=0.0",
            f"tokens={args.tokens}",
            'minutes="none"',
            "samples=[]",
        ],
    )
    for step in training.steps():
        if step.step % 50 == 0:
            print(f"gamma {gamma:g}: step {step.step}, loss {step.loss:.3f}", flush=True)
    return read_metrics(training.folder)


def _draw(runs: dict[float, Metrics], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for gamma, metrics in runs.items():
        tokens = [step.tokens / 1e6 for step in metrics.steps]
        violation = [step.max_violation or 0 for step in metrics.steps]
        smooth = [mean(violation[max(0, i - 9) : i + 1]) for i in range(len(violation))]
        axes.plot(tokens, smooth, label=f"gamma {gamma:g}")
    axes.set(xlabel="million tokens", ylabel="MaxVio (mean of layers)", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
