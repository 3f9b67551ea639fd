"""Where a training step of ours goes: its parts by torch's profiler, in milliseconds and shares."""

import time

from torch.profiler import ProfilerActivity, profile

from speed.trainers import Abyssal

STEPS = 5
# Part -> beginnings of the operators' names; what no operator accounts for is the optimizer's
# native calls and Python.
PARTS = {
    "products (torch)": ("aten::mm",),
    "routed experts": ("_RoutedExperts",),
    "attention": ("_Native",),
    "norms, SwiGLU, sums": ("_RMSNorm", "_AddRMSNorm", "_SwiGLU", "aten::add", "aten::copy_"),
    "cross-entropy": ("_ChunkedCrossEntropy",),
    "router": ("_Route",),  # behind the experts, whose names begin alike
}


def parts(model: str, threads: int, rows: int, length: int) -> dict[str, float]:
    """Milliseconds of each part in a step, and of the whole."""
    trainer = Abyssal(model, threads, rows, length)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        trainer.train(STEPS)
        whole = time.perf_counter() - began
    found, spent = dict.fromkeys(PARTS, 0.0), 0.0
    for row in profiled.key_averages():
        spent += row.self_cpu_time_total
        name = next((p for p, some in PARTS.items() if row.key.startswith(some)), None)
        if name is not None:
            found[name] += row.self_cpu_time_total / STEPS / 1e3
    found["other operators"] = spent / STEPS / 1e3 - sum(found.values())
    whole_ms = whole / STEPS * 1e3
    return found | {"AdamW and Python": whole_ms - spent / STEPS / 1e3, "a step": whole_ms}


def show(found: dict[str, float]) -> None:
    """A table, the largest first."""
    print("| part | ms | share |\n| --- | --- | --- |")
    for name, ms in sorted(found.items(), key=lambda part: -part[1]):
        print(f"| {name} | {ms:.1f} | {ms / found['a step']:.0%} |")
