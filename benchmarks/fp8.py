"""FP8 training beside BF16, same seed and data: how far the losses are apart, and what is noise.

    python benchmarks/fp8.py                       # all runs that are not there yet; two hours
    python benchmarks/fp8.py --quick               # a minute: 12 steps of tiny, one seed
    python benchmarks/fp8.py --plot                # table and curves of what is there
    python benchmarks/fp8.py --sequences 128 --svg docs/fp8_large.svg    # batches 8 times as large

Trains tiny/base and mini/base for some hundred steps, their schedules scaled, over the demo's
shards (from `abyssal demo`), and writes docs/fp8.svg. The distance of two runs is
|L - L_bf16| / L_bf16 of each step, smoothed by an exponential average with 0.9 (arXiv 2412.19437,
sections 3.3 and B.1). Beside it stand the losses smoothed first, in which the noise of batches
averages out, and those of the finished models on text held out. The float32 runs are the noise:
training that differs in rounding only.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from abyssal.data.packing import Packer
from abyssal.data.shards import Shards
from abyssal.data.sources import Source
from abyssal.model.transformer import DeepSeekV3
from abyssal.train.history import Step
from abyssal.train.loss import cross_entropy
from abyssal.train.metrics import Metrics, read_metrics
from abyssal.train.training import Training

# What a recipe is trained with; the first is what the others are compared with.
ARMS = {
    "bf16": ('precision="bfloat16"',),
    "fp8": ('precision="fp8"',),
    "float32": ('precision="float32"',),
    "e5m2": ('precision="fp8"', 'fp8.gradients="e5m2"'),
    "tensor": ('precision="fp8"', 'fp8.scales="tensor"'),
    "block": ('precision="fp8"', 'fp8.gradient_blocks="block"'),
}
NAMES = {
    "fp8": "FP8 as in the paper",
    "float32": "float32: the noise",
    "e5m2": "gradients in E5M2",
    "tensor": "one scale a tensor",
    "block": "gradients in blocks of 128 by 128",
}
RECIPES = ["tiny", "mini"]
# Steps of each, by sequences of 256 tokens a step: 16 as the recipes have it; of more, losses have
# less noise.
STEPS = {16: {"tiny": 400, "mini": 240}, 128: {"tiny": 60, "mini": 40}}
EVERY = 4  # steps between two points of a curve
SEQUENCES = 16
LAST = 50  # steps, or half of them if that is less, whose losses are averaged
SMOOTHING = 0.9
HELD_OUT = 15 * 4096  # tokens, all there are, that finished models are compared on, in BF16


class Run(NamedTuple):
    """One arm of one recipe with one seed."""

    recipe: str
    arm: str
    seed: int

    def folder(self, args: argparse.Namespace) -> Path:
        """Where it trains."""
        steps = _steps(self.recipe, args)
        batch = "" if args.sequences == SEQUENCES else f"-of-{args.sequences}"
        return args.out / f"{self.recipe}-{steps}{batch}" / f"{self.arm}-{self.seed}"


def main() -> None:
    """Run what is not there yet, then print and draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    options.add_argument("--steps", type=int, help="of every run")
    options.add_argument("--sequences", type=int, default=SEQUENCES, choices=STEPS,
                         help="of 256 tokens a step")  # fmt: skip
    options.add_argument("--quick", action="store_true")
    options.add_argument("--plot", action="store_true", help="run nothing")
    options.add_argument("--out", type=Path, default=Path("out/fp8"))
    options.add_argument("--demo", type=Path, default=Path("out/demo"))
    options.add_argument("--svg", type=Path, default=Path("docs/fp8.svg"))
    args = options.parse_args()
    if args.quick:
        args.recipes, args.seeds, args.steps = ["tiny"], [1], args.steps or 12
        args.svg = args.out / "quick.svg"
    if not args.plot:
        for run in _order(args):
            _train(run, args)
    for recipe in args.recipes:
        _table(recipe, args)
    _draw(args)


def _steps(recipe: str, args: argparse.Namespace) -> int:
    steps: int = args.steps or STEPS[args.sequences][recipe]
    return steps


def _order(args: argparse.Namespace) -> Iterator[Run]:
    """What matters most first: FP8 and BF16 of all recipes, then one seed of the rest."""
    for some in (("bf16", "fp8"), ("float32", "e5m2", "tensor", "block")):
        arms = [arm for arm in some if arm in args.arms]
        if "fp8" in some:
            yield from (Run(r, a, s) for r in args.recipes for s in args.seeds for a in arms)
        else:
            yield from (Run(r, a, s) for s in args.seeds for r in args.recipes for a in arms)


def _train(run: Run, args: argparse.Namespace) -> None:
    data, folder = args.demo / "data", run.folder(args)
    steps = _steps(run.recipe, args)
    training = Training(
        f"{run.recipe}/base",
        [
            f'out="{folder}"',
            f"seed={run.seed}",
            f'tokenizer="{args.demo / "tokenizer"}"',
            f'data.sources=[{{name="stories", shards="{data / "stories"}"}}]',
            f'data.held_out=[{{name="stories", shards="{data / "valid"}"}}]',
            f"batch.sequences=[{{until=1, to={args.sequences}}}]",
            f"tokens={steps * args.sequences * 256}",
            'minutes="none"',
            "samples=[]",
            f"eval_every={steps}",
            *ARMS[run.arm],
        ],
    )
    for step in training.steps():
        if step.step % 50 == 0:
            print(
                f"{run.recipe} {run.arm} seed {run.seed}: step {step.step}, loss {step.loss:.4f}, "
                f"{step.tokens_per_s:,.0f} tokens/s",
                flush=True,
            )
    if training.stopped_by:
        raise SystemExit(128 + training.stopped_by)  # saved: the same command goes on


def _read(run: Run, args: argparse.Namespace) -> Metrics | None:
    folder = run.folder(args)
    return read_metrics(folder) if (folder / "done.json").is_file() else None


def errors(run: Metrics, twin: Metrics) -> list[float]:
    """|L - L'| / L' of each step, smoothed."""
    return smoothed([abs(one.loss - other.loss) / other.loss for one, other in _paired(run, twin)])


def apart(run: Metrics, twin: Metrics) -> float:
    """How far the smoothed losses are apart at the end, relative: their noise averaged first."""
    one, other = (smoothed([step.loss for step in m.steps])[-1] for m in (run, twin))
    return one / other - 1


def smoothed(values: list[float]) -> list[float]:
    """The exponential average, from the first value on."""
    smooth = values[:1]
    for value in values[1:]:
        smooth.append(SMOOTHING * smooth[-1] + (1 - SMOOTHING) * value)
    return smooth


def _paired(run: Metrics, twin: Metrics) -> list[tuple[Step, Step]]:
    pairs = list(zip(run.steps, twin.steps, strict=True))
    assert all(one.tokens == other.tokens for one, other in pairs)
    return pairs


def _compared(recipe: str, arm: str, args: argparse.Namespace) -> dict[int, list[float]]:
    """The errors of each seed that is there."""
    found = {}
    for seed in args.seeds:
        run, twin = (_read(Run(recipe, a, seed), args) for a in (arm, "bf16"))
        if run and twin:
            found[seed] = errors(run, twin)
    return found


def _table(recipe: str, args: argparse.Namespace) -> None:
    tokens = args.sequences * 256
    print(f"\n{recipe}/base, {_steps(recipe, args)} steps of {tokens:,} tokens\n")
    print(
        "| arm | seeds | distance at the end, % | its largest after warm-up | smoothed losses "
        "apart, % | last losses apart, % | held-out losses apart, % |\n"
        "|---|---|---|---|---|---|---|"
    )
    for arm in NAMES:
        found = _compared(recipe, arm, args)
        if not found:
            continue
        pairs = [[_read(Run(recipe, a, seed), args) for a in (arm, "bf16")] for seed in found]
        shifts = [_mean_loss(run) / _mean_loss(twin) - 1 for run, twin in pairs]
        ends = [[_final(Run(recipe, a, seed), args) for a in (arm, "bf16")] for seed in found]
        print(
            f"| {NAMES[arm]} | {', '.join(map(str, found))} "
            f"| {_list(100 * e[-1] for e in found.values())} "
            f"| {_list(100 * max(e[min(40, len(e) // 4) :]) for e in found.values())} "
            f"| {_list((100 * apart(*pair) for pair in pairs), '+.3f')} "
            f"| {_list((100 * shift for shift in shifts), '+.3f')} "
            f"| {_list((100 * (one / other - 1) for one, other in ends), '+.3f')} |"
        )


def _final(run: Run, args: argparse.Namespace) -> float:
    """The loss of a published model on held-out text, nats a token; computed once."""
    folder = run.folder(args)
    written = folder / "final-loss.json"
    if not written.is_file():
        source = Source(shards=Shards(args.demo / "data" / "valid"), weight=1.0, name="valid")
        packer = Packer(
            [source], tokens_per_batch=4096, seq_len=256, isolate=False, fim_rate=0.0, seed=0
        )
        model, total = DeepSeekV3.load(folder), 0.0
        with torch.no_grad():
            for _ in range(HELD_OUT // 4096):
                batch = packer.next().batch
                total += float(
                    cross_entropy(model(batch).hidden, model.lm_head.weight, batch.labels)
                )
        written.write_text(json.dumps(total / HELD_OUT))
    return json.loads(written.read_text())


def _mean_loss(run: Metrics) -> float:
    last = min(LAST, len(run.steps) // 2)
    return mean(step.loss for step in run.steps[-last:])


def _list(values: Iterator[float], form: str = ".3f") -> str:
    return ", ".join(format(value, form) for value in values)


def _draw(args: argparse.Namespace) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(args.recipes), figsize=(4.5 * len(args.recipes), 3.8), sharey=True, squeeze=False
    )
    for axis, recipe in zip(axes[0], args.recipes, strict=True):
        for color, arm in enumerate(NAMES):
            found = list(_compared(recipe, arm, args).values())
            if not found:
                continue
            rows = list(zip(*found, strict=True))[EVERY - 1 :: EVERY]
            steps = range(EVERY, EVERY * len(rows) + 1, EVERY)
            name = f"{NAMES[arm]} ({len(found)} {'seed' if len(found) == 1 else 'seeds'})"
            mean_of = [100 * mean(row) for row in rows]
            axis.plot(steps, mean_of, color=f"C{color}", label=name, lw=2 if arm == "fp8" else 1.2)
            if len(found) > 1:
                low, high = ([100 * f(row) for row in rows] for f in (min, max))
                axis.fill_between(steps, low, high, color=f"C{color}", alpha=0.15, lw=0)
        axis.axhline(0.25, color="0.5", ls=":", lw=1)
        axis.set(title=f"{recipe}/base", xlabel="steps", ylim=(0, 1))
        axis.legend(frameon=False, fontsize=7, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set(ylabel="distance of the loss from BF16's, %")
    figure.tight_layout()
    args.svg.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.svg)


if __name__ == "__main__":
    main()
