"""How far a model reads: passkeys before extension, by position interpolation and by YaRN.

    abyssal prepare --needles --out out/long
    python benchmarks/long_context.py [--out out/long]

Trains long/base on 512 tokens, and from it both phases (2K, 8K) in two arms that differ in nothing
but rope_scaling.type; looks for needles in each, and in the base under changed positions without
any training. Prints tables and draws docs/long-context.svg and docs/long-context-maps.png. What is
done stays in OUT and is not done again.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from abyssal.config import RopeScaling
from abyssal.evals import needle
from abyssal.evals.records import RESULTS
from abyssal.train.training import Training

TRAINED = 512  # tokens
LENGTHS = (512, 1024, 2048, 4096, 8192)
DEPTHS = needle.evenly(5)
NAMES = {None: "before", "linear": "interpolation", "yarn": "YaRN"}


class Arm(NamedTuple):
    """A model under some positions, searched up to `reach` tokens."""

    folder: str
    type: str | None  # of rope_scaling; None: plain
    factor: int
    trained: bool

    @property
    def name(self) -> str:
        """As figures call it."""
        if self.type is None:
            return NAMES[None]
        return f"{NAMES[self.type]} x{self.factor}{', trained' if self.trained else ''}"

    @property
    def lengths(self) -> tuple[int, ...]:
        """All that these positions reach; plain ones are asked for everything."""
        return tuple(n for n in LENGTHS if self.type is None or n <= self.factor * TRAINED)


PHASES = {4: "extend-2k", 16: "extend-8k"}
ARMS = [Arm("base", None, 1, False)]
ARMS += [Arm("base", kind, factor, False) for factor in PHASES for kind in ("linear", "yarn")]
ARMS += [
    Arm(f"{phase}-{kind}", kind, factor, True)
    for factor, phase in PHASES.items()
    for kind in ("linear", "yarn")
]


def main() -> None:
    """Run what is not there yet, then print and draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("out/long"))
    options.add_argument(
        "--trials", type=int, default=20, help="at each depth; a quarter beyond 2K"
    )
    options.add_argument("--seed", type=int, default=1, help="of every training")
    args = options.parse_args()
    seed = f"seed={args.seed}"
    _train("long/base", args.out, "base", seed)
    for kind in ("linear", "yarn"):
        before = "base"
        for phase in PHASES.values():
            scaling = f"model.rope_scaling.type={kind}"
            _train(f"long/{phase}", args.out, f"{phase}-{kind}",
                   f'init="{args.out / before}"', scaling, seed)  # fmt: skip
            before = f"{phase}-{kind}"
    found = {arm: _search(arm, args.out, args.trials) for arm in ARMS}
    _print(found)
    _draw(found, Path("docs/long-context.svg"))
    _draw_maps(found, Path("docs/long-context-maps.png"))


def _train(recipe: str, out: Path, name: str, *changes: str) -> None:
    data = out / "data"
    shards = {"long/base": "base", "long/extend-2k": "2k", "long/extend-8k": "8k"}[recipe]
    training = Training(
        recipe,
        [
            f'out="{out / name}"',
            f'tokenizer="{out / "tokenizer"}"',
            f'data.sources=[{{name="needles", shards="{data / shards}"}}]',
            *changes,
        ],
    )
    for step in () if training.is_done else training.steps():
        if step.step % 20 == 0:
            print(f"{name}: step {step.step}, loss {step.loss:.3f}", flush=True)
    if training.stopped_by is not None:
        raise SystemExit("stopped; the same command goes on")


def _search(arm: Arm, out: Path, trials: int) -> dict[int, dict[str, Any]]:
    """What was found, by length."""
    found = {}
    for length in arm.lengths:
        scaling = None
        if arm.type is not None and not arm.trained:
            kind: Any = arm.type
            scaling = RopeScaling(
                type=kind, factor=arm.factor, original_max_position_embeddings=TRAINED
            )
        place = out / "needle" / arm.name.replace(", ", "-").replace(" ", "-") / str(length)
        many = trials if length <= 4 * TRAINED else max(1, trials // 2)
        what = needle.Search(lengths=(length,), depths=DEPTHS, trials=many)
        if not (place / RESULTS).is_file():
            llm = needle.opened(out / arm.folder, length, scaling)
            with closing(needle.search(llm, out / arm.folder, place, what)) as steps:
                *_, last = steps
            print(f"{arm.name} at {length}: {last.found}", flush=True)
        found[length] = json.loads((place / RESULTS).read_bytes())
    return found


def _print(found: dict[Arm, dict[int, dict[str, Any]]]) -> None:
    for metric in needle.METRICS:
        print(f"\n| {metric} | {' | '.join(f'{n:,}' for n in LENGTHS)} |")
        print(f"| --- |{' --- |' * len(LENGTHS)}")
        for arm, by_length in found.items():
            cells = []
            for n in LENGTHS:
                one = by_length[n][metric]["all"] if n in by_length else None
                cells.append(
                    f"{one['value']:.0%} ({one['low']:.0%} to {one['high']:.0%})" if one else ""
                )
            print(f"| {arm.name} | {' | '.join(cells)} |")


def _draw(found: dict[Arm, dict[int, dict[str, Any]]], path: Path) -> None:
    """Accuracy against length: without training on the left, with it on the right."""
    from matplotlib import pyplot

    colors = {None: "0.4", "linear": "C1", "yarn": "C0"}
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axes, trained in zip(panels, (False, True), strict=True):
        for arm, by_length in found.items():
            if arm.type is not None and arm.trained != trained:
                continue
            scores = [one["exact"]["all"] for one in by_length.values()]
            values = [one["value"] for one in scores]
            bars = [
                [one["value"] - one["low"] for one in scores],
                [one["high"] - one["value"] for one in scores],
            ]
            axes.errorbar(
                list(by_length), values, yerr=bars, label=arm.name, color=colors[arm.type],
                linestyle="--" if arm.factor == 16 else "-", marker="o", markersize=3, capsize=2,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="tokens", ylim=(-0.03, 1.03))
        axes.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS])
        axes.minorticks_off()
        axes.set_title("short training" if trained else "no training", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.72, 0.3))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("passkeys found (exact)")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _draw_maps(found: dict[Arm, dict[int, dict[str, Any]]], path: Path) -> None:
    """Shares found, a column a length, depths from top to bottom."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 3, figsize=(9, 6.5))
    for axes, (arm, by_length) in zip(panels.flat, found.items(), strict=True):
        columns = [by_length[n]["exact"]["map"][0] for n in by_length]
        rows = [[column[i] for column in columns] for i in range(len(DEPTHS))]
        axes.imshow(rows, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for y, row in enumerate(rows):
            for x, share in enumerate(row):
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(by_length)), [f"{n:,}" for n in by_length], fontsize=7)
        axes.set_yticks(range(len(DEPTHS)), [f"{depth:.0%}" for depth in DEPTHS], fontsize=7)
        axes.set_title(arm.name, fontsize=9)
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("depth", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
