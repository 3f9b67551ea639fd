"""The planner beside what it plans: memory and step time of six layouts on this machine.

    python benchmarks/planner.py [--demo out/demo] [--out out/planner] [--steps 30]

Every layout is a real `abyssal train` in processes of its own, over the demo's shards (from
`abyssal demo`): one process with all cores, or two with half of them each, by torchrun. Memory is
the peak resident size of the largest process, as the run writes it down, less that of the same
command over a model of next to nothing: interpreter, torch, kernels, tokenizer, data. Time is the
median step. Both are medians over repeats. The plan's time rests on rates of this machine,
measured before each repeat, kind by kind, in passes of as many rows (abyssal/train/rates.py); its
model is not one that the constants of abyssal/plan/memory.py were found with. Goals: 10% for
memory, 25% for time.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from abyssal.config import PRESETS, ModelConfig
from abyssal.plan.hardware import Accelerator, Rates
from abyssal.plan.layout import Layout
from abyssal.plan.memory import largest
from abyssal.plan.time import plan_time
from abyssal.train.metrics import read_metrics

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
    rates: dict[tuple[str, int, int], list[Rates]] = {}
    runs: dict[str, list[Found]] = {name: [] for name in LAYOUTS}
    empty = {number: _run(EMPTY, _for_empty(number), 3, args).peak_bytes for number in (1, 2)}
    for _ in range(args.repeats):
        for name, layout in LAYOUTS.items():
            rates.setdefault(_kind(layout), []).append(_rates(layout, args))
            runs[name].append(_run(MODEL, layout, args.steps, args))
            print(f"{name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    rows, met = [], True
    for name, layout in LAYOUTS.items():
        own = _median(rates[_kind(layout)])
        memory_bytes = largest(MODEL, layout, is_cpu=True).total
        step_s = plan_time(MODEL, layout, _machine(layout.precision, own)).total_s
        found_bytes = median(run.peak_bytes for run in runs[name]) - empty[layout.dp]
        found_s = median(run.step_s for run in runs[name])
        apart = memory_bytes / found_bytes - 1, step_s / found_s - 1
        met &= abs(apart[0]) <= MEMORY_GOAL and abs(apart[1]) <= TIME_GOAL
        rows.append(
            f"| {name} | {memory_bytes / 1e6:,.0f} | {found_bytes / 1e6:,.0f} | {apart[0]:+.1%} "
            f"| {step_s:.2f} | {found_s:.2f} | {apart[1]:+.1%} |"
        )
    print("| layout | memory planned, MB | measured | difference | step planned, s | measured "
          "| difference |\n|---|---|---|---|---|---|---|")  # fmt: skip
    print("\n".join(rows))
    for (precision, processes, rows), found in rates.items():
        said = ", ".join(f"{k} {v:.3g}" for k, v in dataclasses.asdict(_median(found)).items() if v)
        print(f"\n{precision}, {processes} processes, {rows} rows a pass: {said}")
    raw = {name: [run._asdict() for run in found] for name, found in runs.items()}
    (args.out / "planner.json").write_text(json.dumps({"empty": empty, "runs": raw}, indent=1))
    sys.exit(0 if met else 1)


def _kind(layout: Layout) -> tuple[str, int, int]:
    """What decides rates: precision, processes, rows of a pass."""
    return layout.precision, layout.dp, layout.micro_sequences


def _for_empty(processes: int) -> Layout:
    return replace(BASE if processes == 1 else HALF, seq_len=64)


def _machine(precision: str, rates: Rates) -> Accelerator:
    """What the plan needs to know of this machine."""
    peaks = {precision: rates.dense_flops, "bfloat16": rates.dense_flops}
    return Accelerator(
        name="this machine", peak_flops=peaks, memory_bytes=0.0, bandwidth=rates.row_bytes,
        is_cpu=True, rates={precision: rates},
    )  # fmt: skip


def _median(found: list[Rates]) -> Rates:
    names = [field.name for field in dataclasses.fields(Rates)]
    middle = {}
    for name in names:
        values = [getattr(one, name) for one in found]
        middle[name] = None if values[0] is None else median(values)
    return Rates(**middle)


def _command(module: str, processes: int, threads: int) -> tuple[list[str], dict[str, str]]:
    """Python running a module, by torchrun where there are several; threads are shared out."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads // processes))}
    if processes == 1:
        return [sys.executable, "-m", module], environment
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={processes}", "-m", module], environment


def _rates(layout: Layout, args: argparse.Namespace) -> Rates:
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
    return Rates(**json.loads(said.read_text()))


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
