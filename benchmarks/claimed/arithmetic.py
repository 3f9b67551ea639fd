"""Claims that are sums: parameters, bytes, FLOPs, money, bubbles, placements."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from abyssal.batch import Batch
from abyssal.checkpoint import names
from abyssal.config import PRESETS, ModelConfig
from abyssal.engine.cache import PagedCache
from abyssal.engine.pages import PAGE
from abyssal.model.transformer import DeepSeekV3
from abyssal.plan import cost, serving
from abyssal.plan.count import count
from abyssal.plan.pipeline import Times, formula, simulate
from abyssal.plan.placement import place
from abyssal.plan.schedules import Schedule, program
from abyssal.quant import formats
from abyssal.train.loss import losses
from claimed.row import Row, exact, near

V3 = PRESETS["deepseek-v3"]
PAPER, INSIGHTS = "2412.19437", "2505.09343"


def parameters() -> Iterator[Row]:
    """Counted in closed form, and tensor by tensor on the model without memory."""
    counts = count(V3)
    with torch.device("meta"):
        model = DeepSeekV3(V3)
    held = sum(t.numel() for name, t in model.state_dict().items() if not name.startswith("mtp."))
    mtp = sum(t.numel() for name, t in model.state_dict().items() if name.startswith("mtp."))
    yield exact("main model", 671_026_419_200, counts.params_total)
    yield exact("main model, tensor by tensor", 671_026_419_200, held)
    yield exact("active, with embedding", 37_552_297_472, counts.params_active_with_embedding)
    yield exact("active, without embedding", 36_625_618_432, counts.params_active)
    inside = counts.params_active - counts.active.head
    yield exact("active, without embedding and head", 35_698_939_392, inside)
    yield exact("MTP module", 11_610_068_224, counts.params_mtp)
    yield exact("MTP module, tensor by tensor", 11_610_068_224, mtp)


def released_folder() -> Iterator[Row]:
    """What the config class would store in the released format."""
    with torch.device("meta"):
        ours = DeepSeekV3(V3).state_dict()
    stored = Counter[str]()
    tensors = 0
    pieces = [part for name, t in ours.items() for part in names.parts(name, t.shape, V3)]
    shapes = {part.published: part.shape for part in pieces}
    shapes |= {copy: shapes[original] for copy, original in names.copies(V3).items()}
    for published, shape in shapes.items():
        if formats.kind_of(published, "fp8"):
            numbers, scales = formats.stored_as(published, shape, "fp8").values()
            tensors += 2
            stored["FP8"] += math.prod(numbers.shape)
            stored["scales"] += math.prod(scales.shape)
        else:
            tensors += 1
            stored["biases" if published.endswith("_bias") else "BF16"] += math.prod(shape)
    width = {"FP8": 1, "BF16": 2, "biases": 4, "scales": 4}
    yield exact("tensors", 91_991, tensors)
    yield exact("numbers in FP8", 680_571_043_840, stored["FP8"])
    yield exact("numbers in BF16", 3_918_786_560, stored["BF16"])
    yield exact("numbers in router biases", 15_104, stored["biases"])
    yield exact("numbers in scales", 41_540_496, stored["scales"])
    yield exact("bytes", 688_574_839_360, sum(width[kind] * stored[kind] for kind in stored))


def caches() -> Iterator[Row]:
    """Allocated, and divided by the tokens they hold."""
    cache = PagedCache(V3, 1, torch.bfloat16, torch.device("cpu"), num_layers=V3.num_hidden_layers)
    latent = cache.pool.nbytes / PAGE
    yield exact("DeepSeek-V3, bytes a token", 70_272, int(latent))
    for name, layers, kb, printed, arithmetic in (
        ("Qwen2.5-72B", 80, 327_680, 4.66, 327_680 / 70_272),
        ("LLaMA-3.1-405B", 126, 516_096, 7.28, 516_096 / 70_272),
    ):
        grouped = torch.empty(layers, 2, PAGE, 8, 128, dtype=torch.bfloat16, device="meta")
        yield exact(f"{name}, bytes a token", kb, grouped.nbytes // PAGE)
        # One multiplier is printed as 7.28 where its own two columns give 7.34: shown as it is.
        yield near(f"{name}, times MLA's", printed, grouped.nbytes / PAGE / latent, 0.01,
                   f"{arithmetic:.2f} by its own columns")  # fmt: skip
    unfolded = 2 * V3.num_hidden_layers * V3.num_attention_heads
    unfolded *= V3.qk_head_dim + V3.v_head_dim
    yield exact("DeepSeek-V3 unfolded, bytes a token", 4_997_120, unfolded)
    small = PRESETS["small"]
    real = PagedCache(small, 4, torch.bfloat16, torch.device("cpu"), num_layers=8)
    told = count(small).cache_bytes_per_token
    yield exact("small, bytes a token", told, real.pool.nbytes // (4 * PAGE), "planned beside real")


def flops() -> Iterator[Row]:
    """The closed form beside the published figure, and beside a counter on small models."""
    gigaflops = count(V3).flops_per_token_training(4096) / 1e9
    yield near("DeepSeek-V3 at 4K, GFLOP", 250.0, gigaflops, 0.005)
    for name in ("tiny", "mini", "small"):
        planned, counted = _counted(PRESETS[name])
        yield near(f"{name}, FLOP a token", planned, counted, 0.005, "planned beside a counter")


def _counted(preset: ModelConfig) -> tuple[int, float]:
    """All experts chosen, so that none is padded; one block of queries, whose full square is what
    a causal pass over twice the length takes.
    """
    length = 128
    config = replace(
        preset, num_experts_per_tok=preset.n_routed_experts, topk_group=preset.n_group,
        num_nextn_predict_layers=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DeepSeekV3(config).initialize()
    batch = Batch.from_sequences([torch.randint(0, config.vocab_size, (length,)).tolist()])
    batch = replace(batch, labels=batch.tokens.roll(-1))
    with FlopCounterMode(display=False) as counter:
        output = model(batch)
        top_k = config.num_experts_per_tok
        losses(output, model.lm_head.weight, batch, top_k=top_k, balance=False).main.backward()
    planned = count(config).flops_per_token_training(2 * length)
    return planned, counter.get_total_flops() / length


def costs() -> Iterator[Row]:
    """The report's table 1 from 180K hours a trillion tokens and $2 an hour."""
    table = cost.published()
    for name, hours, dollars in (
        ("pre-training", 2_664_000, 5_328_000),
        ("context extension", 119_000, 238_000),
        ("post-training", 5_000, 10_000),
        ("total", 2_788_000, 5_576_000),
    ):
        yield exact(f"{name}, H800 hours", hours, int(table[name].device_hours))
        yield exact(f"{name}, dollars", dollars, int(table[name].dollars or 0))
    days = cost.of_hours(1e12, cost.HOURS_PER_TRILLION, cost.DEVICES, None).days
    yield near("a trillion tokens on 2048, days", 3.7, days, 0.02)


def service() -> Iterator[Row]:
    """The online service's day, and the bound of the network."""
    yield exact("a day, dollars", 87_072, int(serving.service_cost()))
    share = serving.CACHED_TOKENS / serving.INPUT_TOKENS
    yield near("input from cache, percent", 56.3, 100 * share, 0.001)
    yield near("revenue at R1's prices, dollars", 562_027, serving.service_revenue(), 0.001)
    margin = serving.service_revenue() / serving.service_cost() - 1
    yield near("margin, percent", 545, 100 * margin, 0.005, "of tokens as printed, in billions")
    yield near("a step over 50 GB/s, ms", 14.76, 1e3 * serving.step_bound_s(50e9), 0.001)
    yield near("... tokens a second", 67, 1 / serving.step_bound_s(50e9), 0.02)
    yield near("a step over 900 GB/s, ms", 0.82, 1e3 * serving.step_bound_s(900e9), 0.01)
    whole = 1e3 * serving.step_bound_s(50e9, hidden_size=V3.hidden_size)
    yield near("... with 7168 instead of 7K, ms", 14.76, whole, 0.03)
    for name, held in (("prefill", 9), ("decode", 2)):
        unit = serving.UNITS[name]
        yield exact(f"{name}, routed experts a device", held, unit.slots_per_device)


def pipelines() -> Iterator[Row]:
    """Simulated idle time of every rank, and the phases of DualPipe."""
    for schedule, idle in (("1f1b", 45), ("zb1p", 15), ("dualpipe", 14), ("dualpipev", 14)):
        timeline = simulate(_named(schedule), 16, 40, Times())
        found = set(timeline.idle)
        ours = found.pop() if len(found) == 1 else f"{sorted(found)}"
        yield exact(f"{schedule}, idle of all ranks", float(idle), ours, "P=16, F=1 B=2 W=1 F&B=3")
        told = formula(_named(schedule), 16, Times())
        yield exact(f"{schedule}, by the formula", float(idle), told)
    for schedule, chunks in (("1f1b", 16), ("zb1p", 16), ("dualpipe", 17)):
        timeline = simulate(_named(schedule), 16, 40, Times())
        yield exact(f"{schedule}, chunks kept at once", chunks, max(timeline.peak_chunks))
    tasks = program("dualpipe", 8, 20)[0]
    forwards = sum(1 for task in tasks if task.forward and task.forward.pipe == 0)
    yield exact("dualpipe, forwards of rank 0 one way", 10, forwards, "P=8, n=10")
    alone = next(i for i, task in enumerate(tasks) if task.kind == "F" and task.forward.pipe)
    yield exact("dualpipe, its first phases", "6+1", f"{alone - 1}+1", "forwards alone")


def _named(schedule: str) -> Schedule:
    return schedule  # type: ignore[return-value]


def placement() -> Iterator[Row]:
    """EPLB's golden vectors, by node and over all devices."""
    loads = [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
    golden = {
        2: ([5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], 1.208,
            [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1], 1.242),
        3: ([10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1], 1.073,
            [1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7], 1.190),
    }  # fmt: skip
    for nodes, (first, load, second, other) in golden.items():
        kind = "by node" if 4 % nodes == 0 else "over all"
        found = place(loads, slots=16, groups=4, nodes=nodes, devices=8)
        for layer, (slots, heaviest) in enumerate(((first, load), (second, other))):
            said, ours = (" ".join(map(str, s)) for s in (slots, found[layer].experts))
            yield exact(f"{kind}, layer {layer}", said, ours)
            imbalance = round(found[layer].imbalance, 3)
            yield exact(f"{kind}, layer {layer}, max/mean load", heaviest, imbalance)
