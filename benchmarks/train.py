"""Training speed beside transformers: the same configuration, data and batch, in turn, in one run.

    python benchmarks/train.py [--preset tiny] [--steps 12] [--rounds 2] [--json]

Each engine runs in a process of its own, so that threads and memory start alike; engines take turns
over `rounds`, and the figure is the median step of the best round. One step is forward, loss over
all positions, backward, gradient clipping and the optimizer. MFU counts 6 FLOPs per active
parameter and the attention core, against the fastest matrix product measured at the start of each
process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ENGINES = {
    "abyssal, tiny recipe (BF16, Muon)": ("abyssal", "muon", "bfloat16"),
    "abyssal (BF16, AdamW)": ("abyssal", "adamw", "bfloat16"),
    "abyssal (FP32, AdamW)": ("abyssal", "adamw", "float32"),
    "transformers eager (FP32, AdamW)": ("transformers", "float32", "eager"),
    "transformers grouped (FP32, AdamW)": ("transformers", "float32", "grouped_mm"),
    "transformers grouped (BF16 autocast)": ("transformers", "autocast", "grouped_mm"),
}
LENGTH, ROWS = 256, 16  # tokens and sequences of a step, as in recipes/tiny/base.toml


def main() -> None:
    """Take turns, then print one table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--preset", default="tiny")
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--json", action="store_true")
    options.add_argument("--one", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.one:
        print(json.dumps(_measure(args.one, args.preset, args.steps)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    for turn in range(args.rounds):
        for name in ENGINES:
            results[name].append(_in_a_process(name, args))
            shown = results[name][-1]
            print(f"round {turn + 1}: {name}: {shown['tokens_per_s']:,.0f} tok/s", file=sys.stderr)
    best = {name: max(runs, key=lambda run: run["tokens_per_s"]) for name, runs in results.items()}
    if args.json:
        print(json.dumps(best))
        return
    peer = best["transformers eager (FP32, AdamW)"]["tokens_per_s"]
    print(f"{'':38} {'tok/s':>8} {'MFU':>6} {'peak':>6} {'memory':>8} {'ratio':>6}")
    for name, run in best.items():
        print(
            f"{name:38} {run['tokens_per_s']:8,.0f} {run['mfu']:6.1%} {run['peak_tflops']:5.2f}T "
            f"{run['rss_mb']:5,.0f} MB {run['tokens_per_s'] / peer:5.2f}x"
        )


def _in_a_process(name: str, args: argparse.Namespace) -> dict[str, float]:
    bound = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    command = [sys.executable, __file__, "--one", name, "--preset", args.preset]
    done = subprocess.run(
        [*command, "--steps", str(args.steps)],
        env=bound | os.environ,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(name: str, preset: str, steps: int) -> dict[str, float]:
    import resource

    import torch

    from abyssal.config import ModelConfig
    from abyssal.plan.count import count
    from abyssal.train.machine import measure

    engine, *how = ENGINES[name]
    config = ModelConfig.preset(preset)
    peak = max(measure("bfloat16").peak_flops, measure("float32").peak_flops)
    torch.manual_seed(0)
    tokens = torch.randint(3, config.vocab_size, (ROWS, LENGTH + 1))
    build = {"abyssal": _abyssal, "transformers": _transformers}[engine]
    step = build(config, tokens, *how)
    for _ in range(4):  # matrix kernels are prepared, threads are up
        step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    rate = ROWS * LENGTH / statistics.median(times)
    return {
        "tokens_per_s": rate,
        "mfu": rate * count(config).flops_per_token_training(LENGTH) / peak,
        "peak_tflops": peak / 1e12,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _abyssal(config, tokens, matrices, precision):
    import torch

    from abyssal.batch import Batch
    from abyssal.model.transformer import DeepSeekV3
    from abyssal.train.balance import expert_load, update_biases
    from abyssal.train.loss import losses
    from abyssal.train.machine import measure
    from abyssal.train.optim import Optim, Optimizer
    from abyssal.train.trainer import working_copy

    model = working_copy(DeepSeekV3(config).initialize(), measure(precision))
    optimizer = Optimizer(model, Optim(matrices=matrices, moments="float32"))
    positions = torch.arange(LENGTH).repeat(ROWS)
    borders = torch.arange(0, ROWS * LENGTH + 1, LENGTH)
    batch = Batch(tokens[:, :-1].flatten(), positions, borders, tokens[:, 1:].flatten())

    def step():
        output = model(batch)
        parts = losses(
            output,
            model.lm_head.weight,
            batch,
            top_k=config.num_experts_per_tok,
            balance=True,
        )
        (parts.main / len(batch.tokens) + 1e-4 * parts.balance).backward()
        optimizer.collect()
        optimizer.clip()
        optimizer.step(1e-4)
        update_biases(model.gates(), expert_load(output.routings), 0.001)

    return step


def _transformers(config, tokens, precision, experts):
    import torch
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    theirs = DeepseekV3Config(**{k: v for k, v in config.to_dict().items() if k != "architectures"})
    theirs.use_cache = False
    model = AutoModelForCausalLM.from_config(
        theirs, dtype=torch.float32, experts_implementation=experts
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            logits = model(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
