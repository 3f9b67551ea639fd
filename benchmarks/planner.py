"""The planner beside what it plans: memory and step time of six layouts on this machine.

    python benchmarks/planner.py [--demo out/demo] [--out out/planner] [--steps 30]

Every layout is a real `abyssal train` in processes of its own, over the demo's shards (from
`abyssal demo`): one process with all cores, or two with half of them each, by torchrun. Memory is
the peak resident size of the largest process, as the run writes it down, less that of the same
command over a model of next to nothing: interpreter, torch, kernels, tokenizer, data; the median
over repeats. Time is the median step. Its plan rests on parts of a step that are timed on this
machine, in passes of as many rows (abyssal/train/rates.py), just before each run and just after,
because a shared machine drifts: the difference is the median over pairs of plan and run. Of the
constants of abyssal/plan/memory.py only those of float32 and recomputation have seen the model.
Goals: 10% for memory, 25% for time.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from abyssal.config import PRESETS, ModelConfig
from abyssal.plan.layout import Layout
from abyssal.plan.measured import Measured
from abyssal.plan.memory import largest
from abyssal.plan.time import plan_time
from abyssal.train.metrics import read_metrics
from abyssal.train.rates import as_hardware, cpu

CORES = os.cpu_count() or 1
SEQ_LEN, SEQUENCES, FEWER = 512, 8, 2
MEMORY_GOAL, TIME_GOAL = 0.10, 0.25
MODEL = replace(
    PRESETS["small"], hidden_size=576, num_hidden_layers=7, intermediate_size=1280,
    moe_intermediate_size=160, num_attention_heads=6, n_routed_experts=24,
    max_position_embeddings=SEQ_LEN,
)  # fmt: skip
EMPTY = ModelConfig(
    vocab_size=8192, hidden_size=32, num_hidden_layers=2, first_k_dense_replace=1,
    intermediate_size=32, num_nextn_predict_layers=0, num_attention_heads=1, q_lora_rank=32,
    kv_lora_rank=32, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=32,
    moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=1, n_group=1, topk_group=1,
    max_position_embeddings=SEQ_LEN,
)  # fmt: skip
BASE = Layout(sequences=SEQUENCES, micro_sequences=SEQUENCES, seq_len=SEQ_LEN)
HALF = replace(BASE, dp=2, micro_sequences=SEQUENCES // 2)
LAYOUTS = {
    "BF16": BASE,
    "BF16, blocks recomputed": replace(BASE, recompute="blocks"),
    "float32": replace(BASE, precision="float32"),
    f"BF16, {SEQUENCES // FEWER} micro-batches": replace(BASE, micro_sequences=FEWER),
    "BF16, two processes": HALF,
    "BF16, two processes, ZeRO-1": replace(HALF, zero=1),
}

RECIPE = """stage = "pretrain"
out = "{out}"
tokenizer = "{demo}/tokenizer"
seed = 1
tokens = {tokens}
precision = "{precision}"
recompute = {recompute}
zero = {zero}
mtp_lambda = [{{ until = 1, to = 0.3 }}]
save_every = 1000000
eval_every = 1000000

[model]
{model}

[data]
fim_rate = 0.0
sources = [{{ name = "stories", shards = "{demo}/data/stories" }}]

[batch]
seq_len = {seq_len}
sequences = [{{ until = 1, to = {sequences} }}]
micro_sequences = {micro_sequences}

[optim]
matrices = "adamw"
lr = 1e-3
warmup_steps = 10
schedule = [{{ until = 1, to = 1.0 }}]

[balance]
gamma = [{{ until = 1, to = 0.01 }}]
"""


class Found(NamedTuple):
    """Of one run."""

    peak_bytes: int
    step_s: float


class Tried(NamedTuple):
    """A run, and what the machine did just before and just after it."""

    run: Found
    before: Measured
    after: Measured


def main() -> None:
    """Plan and run all layouts, print both beside each other, end with 1 beyond a goal."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--demo", type=Path, default=Path("out/demo"))
    options.add_argument("--out", type=Path, default=Path("out/planner"))
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=CORES, help="of all processes together")
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows_of = f"{SEQUENCES} rows of {SEQ_LEN} tokens"
    print(f"{CORES} cores, {args.threads} threads; {args.steps} steps of {rows_of}\n", flush=True)
    tried: dict[str, list[Tried]] = {name: [] for name in LAYOUTS}
    empty = {number: _run(EMPTY, _for_empty(number), 3, args).peak_bytes for number in (1, 2)}
    for _ in range(args.repeats):
        for name, layout in LAYOUTS.items():
            before = _rates(layout, args)
            run = _run(MODEL, layout, args.steps, args)
            one = Tried(run, before, _rates(layout, args))
            tried[name].append(one)
            said = f"{name}: {run}, planned {_planned(layout, one):.2f} s"
            print(said, file=sys.stderr, flush=True)
    rows = [_row(name, LAYOUTS[name], found, empty) for name, found in tried.items()]
    print("| layout | memory planned, MB | measured | difference | step planned, s | measured "
          "| difference | each |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    print("\n".join(row for row, _ in rows))
    raw = {
        name: [{**one.run._asdict(), "rates": [asdict(r) for r in one[1:]]} for one in all_of]
        for name, all_of in tried.items()
    }
    (args.out / "planner.json").write_text(json.dumps({"empty": empty, "runs": raw}, indent=1))
    sys.exit(0 if all(met for _, met in rows) else 1)


def _row(name: str, layout: Layout, tried: list[Tried], empty: dict[int, int]) -> tuple[str, bool]:
    """A row of the table, and whether both goals are met."""
    memory_bytes = largest(MODEL, layout, cpu=cpu()).total
    found_bytes = median(one.run.peak_bytes for one in tried) - empty[layout.dp]
    planned = [_planned(layout, one) for one in tried]
    measured = [one.run.step_s for one in tried]
    ratios = [plan / run for plan, run in zip(planned, measured, strict=True)]
    apart = memory_bytes / found_bytes - 1, median(ratios) - 1
    each = ", ".join(f"{ratio - 1:+.0%}" for ratio in ratios)
    return (
        f"| {name} | {memory_bytes / 1e6:,.0f} | {found_bytes / 1e6:,.0f} | {apart[0]:+.1%} "
        f"| {median(planned):.2f} | {median(measured):.2f} | {apart[1]:+.1%} | {each} |"
    ), abs(apart[0]) <= MEMORY_GOAL and abs(apart[1]) <= TIME_GOAL


def _planned(layout: Layout, tried: Tried) -> float:
    """Seconds of a step, by what was measured before the run and after it."""
    return mean(
        plan_time(MODEL, layout, as_hardware(rates, layout.precision, 0.0)).total_s
        for rates in (tried.before, tried.after)
    )


def _for_empty(processes: int) -> Layout:
    return replace(BASE if processes == 1 else HALF, seq_len=64)


def _command(module: str, processes: int, threads: int) -> tuple[list[str], dict[str, str]]:
    """Python running a module, by torchrun where there are several; threads are shared out."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads // processes))}
    if processes == 1:
        return [sys.executable, "-m", module], environment
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={processes}", "-m", module], environment


def _rates(layout: Layout, args: argparse.Namespace) -> Measured:
    folder = args.out / "model"
    folder.mkdir(exist_ok=True)
    MODEL.save(folder)
    said = args.out / "rates.json"
    command, environment = _command("abyssal.train.rates", layout.dp, args.threads)
    arguments = [
        str(folder),
        layout.precision,
        str(SEQ_LEN),
        str(layout.micro_sequences),
        str(said),
    ]
    subprocess.run([*command, *arguments], env=environment, check=True, capture_output=True)
    return Measured(**json.loads(said.read_text()))


def _run(config: ModelConfig, layout: Layout, steps: int, args: argparse.Namespace) -> Found:
    """Train for so many steps, from nothing."""
    out = args.out / "run"
    shutil.rmtree(out, ignore_errors=True)
    recipe = args.out / "recipe.toml"
    values = dataclasses.asdict(config)
    model = "\n".join(
        f"{key} = {json.dumps('none' if value is None else value)}" for key, value in values.items()
    )
    recipe.write_text(
        RECIPE.format(
            out=out,
            demo=args.demo,
            tokens=steps * layout.step_tokens,
            model=model,
            precision=layout.precision,
            recompute=str(layout.recompute == "blocks").lower(),
            zero=layout.zero,
            seq_len=layout.seq_len,
            sequences=layout.sequences,
            micro_sequences=layout.micro_sequences,
        )
    )
    command, environment = _command("abyssal", layout.dp, args.threads)
    subprocess.run(
        [*command, "train", str(recipe), "--json"], env=environment, check=True, capture_output=True
    )
    metrics = read_metrics(out)
    end = metrics.end
    assert end is not None, f"{out} did not end"
    assert end.peak_memory_bytes is not None
    late = metrics.steps[len(metrics.steps) // 5 :]
    return Found(
        end.peak_memory_bytes, median(step.batch_tokens / step.tokens_per_s for step in late)
    )


if __name__ == "__main__":
    main()
