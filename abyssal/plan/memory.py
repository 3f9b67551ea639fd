"""Bytes on each device while training: what stands for the whole run, and what a step adds.

    weights, masters, moments      stand; ZeRO-1 spreads masters and moments
    gradients                      of one micro-batch in its precision, of several a float32 sum
    activations                    what our own layers keep for the backward (kept.py), for every
                                   micro-batch on its way (pipeline.py), and room for the work
    head                           the head's own gradient and a chunk of logits (train/loss.py)

A device's largest moment is the beginning of the last backward or its end, whichever is more.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import NamedTuple

from abyssal.config import ModelConfig
from abyssal.plan import pipeline
from abyssal.plan.count import count
from abyssal.plan.hardware import Cpu
from abyssal.plan.kept import block_work, engine_of, head_bytes, stage_kept
from abyssal.plan.layout import Layout, Stage, stages
from abyssal.plan.schedules import Schedule, least_micro_batches

# What glibc's heap holds beyond what is alive in it, weights and their state left out: holes that
# the next tensor does not fit, and scratch of kernels. A share of the last micro-batch's gradients,
# which arrive among what is left of its activations, and one of all that is alive. Found with
# `small` and a model of 92M parameters, 1K to 8K tokens a pass; those of float32 and recomputation
# lie between these two and the model of benchmarks/planner.py (docs/log.md).
HOLES_OF_GRADIENTS = 0.6
HOLES: dict[Cpu, float] = {"amx": 0.28, "vector": 0.05}
HOLES_FLOAT32 = 0.08
HOLES_RECOMPUTED = 0.78


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one device."""

    weights: int = 0
    masters: int = 0
    moments: int = 0
    gradients: int = 0
    activations: int = 0
    work: int = 0  # room of the layer at work
    head: int = 0
    slack: int = 0  # what the allocator holds beyond that

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def to_dict(self) -> dict[str, int]:
        """By part, and together."""
        return {**asdict(self), "total": self.total}


class Parameters(NamedTuple):
    """Of one device: what every data-parallel rank repeats, and its share of routed experts."""

    shared: int
    experts: int

    @property
    def total(self) -> int:
        """Both."""
        return self.shared + self.experts


def of_stage(config: ModelConfig, stage: Stage) -> Parameters:
    """The parameters of a stage, its experts whole."""
    counts, D = count(config), config.hidden_size
    blocks, moe = stage.dense_blocks + stage.moe_blocks, stage.moe_blocks
    all_moe = config.num_hidden_layers - config.first_k_dense_replace
    total, shared = counts.total, 0
    shared += blocks * (total.attention // config.num_hidden_layers + 2 * D)
    if stage.dense_blocks:
        shared += stage.dense_blocks * (total.dense // config.first_k_dense_replace)
    if moe:
        shared += moe * ((total.shared + total.router) // all_moe)
    experts = moe * (total.routed // all_moe) if moe else 0
    if stage.first:
        shared += total.embedding
    if stage.last:
        shared += total.head + D + counts.mtp.total - counts.mtp.routed
        experts += counts.mtp.routed
    return Parameters(shared, experts)


def parameters(config: ModelConfig, layout: Layout, rank: int = 0) -> Parameters:
    """What a device of pipeline rank `rank` holds; DualPipe's hold two stages.

    MTP modules read the embedding again: the last stage has a copy where it lies elsewhere.
    """
    parts = stages(config, layout)
    held = [of_stage(config, parts[stage]) for stage in layout.stages_of(rank)]
    shared = sum(part.shared for part in held)
    if layout.pp > 1 and layout.pp - 1 in layout.stages_of(rank) and (
        config.num_nextn_predict_layers and 0 not in layout.stages_of(rank)
    ):  # fmt: skip
        shared += count(config).total.embedding
    return Parameters(shared, sum(part.experts for part in held) // layout.ep)


def plan_memory(config: ModelConfig, layout: Layout, *, cpu: Cpu | None = None) -> list[Memory]:
    """Of a device of every pipeline rank, at its largest moment."""
    layout.check(config)
    chunks = _chunks_kept(layout)
    return [_of_rank(config, layout, rank, chunks, cpu) for rank in range(layout.ranks)]


def largest(config: ModelConfig, layout: Layout, *, cpu: Cpu | None = None) -> Memory:
    """Of the device that needs most."""
    return max(plan_memory(config, layout, cpu=cpu), key=lambda memory: memory.total)


def _chunks_kept(layout: Layout) -> tuple[int, ...]:
    """Micro-batches whose activations a rank keeps at once, counted chunk by chunk.

    No more than fill the pipeline: a longer step keeps as many.
    """
    if layout.pp == 1:
        return (1,)
    enough = max(least_micro_batches(layout.schedule, layout.pp), 2 * layout.pp)
    return _peak_chunks(layout.schedule, layout.pp, min(layout.micro_batches, enough))


@cache
def _peak_chunks(schedule: Schedule, pp: int, micro_batches: int) -> tuple[int, ...]:
    return pipeline.simulate(schedule, pp, micro_batches, pipeline.Times()).peak_chunks


def _of_rank(
    config: ModelConfig, layout: Layout, rank: int, chunks: tuple[int, ...], cpu: Cpu | None
) -> Memory:
    engine = engine_of(layout.precision, cpu)
    standing = _standing(config, layout, parameters(config, layout, rank))
    parts = stages(config, layout)
    held = [parts[stage] for stage in layout.stages_of(rank)]
    T = layout.micro_tokens
    kept = sum(stage_kept(config, layout, part, engine) for part in held) / len(held)
    activations = int(chunks[rank] * kept * T)
    head = head_bytes(config, layout, engine) if any(part.last for part in held) else 0
    work = int(T * max(block_work(config, layout, part, engine) for part in held))
    fresh, sums = _gradients(config, layout, parameters(config, layout, rank))
    # The last backward begins with all activations, and ends with all gradients instead.
    begins = Memory(**standing, gradients=sums, activations=activations, work=work, head=head)
    ends = Memory(**standing, gradients=sums + fresh, work=work)
    peak = max(begins, ends, key=lambda memory: memory.total)
    if cpu is None:
        return peak
    alive = peak.gradients + peak.activations + peak.work + peak.head
    return replace(peak, slack=int(HOLES_OF_GRADIENTS * fresh + _holes(layout, cpu) * alive))


def _holes(layout: Layout, cpu: Cpu) -> float:
    if layout.recompute == "blocks":
        return HOLES_RECOMPUTED
    return HOLES_FLOAT32 if layout.precision == "float32" else HOLES[cpu]


def _standing(config: ModelConfig, layout: Layout, params: Parameters) -> dict[str, int]:
    """Weights, masters and moments."""
    per_weight = {"bfloat16": 2.0, "float32": 4.0, "fp8": _weight_bytes_fp8(config)}
    width = {"bfloat16": 2, "float32": 4}[layout.moments]
    of_shared = layout.dp if layout.zero else 1
    of_experts = layout.dp // layout.ep if layout.zero else 1
    owned = params.shared / of_shared + params.experts / of_experts
    master = 0 if layout.precision == "float32" else 4  # float32 is its own master
    return {
        "weights": int(per_weight[layout.precision] * params.total),
        "masters": int(master * owned),
        "moments": int(2 * width * owned),
    }


def _weight_bytes_fp8(config: ModelConfig) -> float:
    """Bytes of a weight, on average: embedding, head, router, norms and eh_proj stay in BF16."""
    counts = count(config)
    total = counts.params_total + counts.params_mtp
    high = sum(
        part.embedding + part.head + part.router + part.norms + part.projection
        for part in (counts.total, counts.mtp)
    )
    return (2 * high + (1 + 4 / 128**2) * (total - high)) / total


def _gradients(config: ModelConfig, layout: Layout, params: Parameters) -> tuple[int, int]:
    """Bytes of the last micro-batch's own gradients, and of what those before left.

    Our loop hands each micro-batch's over whole; in a pipeline they are added as they come.
    """
    width = 4 if layout.precision == "float32" else 2
    if layout.pp > 1:
        return 0, 4 * params.total
    if layout.micro_batches > 1:  # the first's are waiting, beside room for the sum
        return width * params.total, (width + 4) * params.total
    is_copied = layout.dp > 1 and width < 4  # what travels is a float32 copy, whose room stays
    return width * params.total, 4 * params.total if is_copied else 0
