"""Steps of a short model with a stopwatch at hand: what the planner's measurements are made of.

Passes are as long as planned ones, since few rows are slower each, and parts follow one another as
in a run, so that none finds its weights or its input in a cache.

T tokens    D hidden_size
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import torch

from abyssal.batch import Batch
from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.model.attention import Span
from abyssal.model.moe import MoE
from abyssal.model.rope import cos_sin
from abyssal.model.transformer import Block, DeepSeekV3
from abyssal.parallel import zero
from abyssal.parallel.ranks import Ranks
from abyssal.plan.count import count
from abyssal.train.loss import cross_entropy, sequence_balance
from abyssal.train.machine import Machine
from abyssal.train.optim import Optim, Optimizer
from abyssal.train.trainer import working_copy

LEAST_S = 4.0  # of all steps
FEWEST = 7  # ... whose medians are taken, and one before them
DENSE, MOE = 1, 3  # blocks, where the whole model has as many and memory holds them
BYTES = 24  # of a parameter, with its masters and moments in both of the optimizers
PARTS = ("dense forward", "dense backward", "moe forward", "moe backward", "ends", "sum", "gather",
         "copy", "step")  # fmt: skip


class Stopwatch:
    """Seconds of each part, of every step."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {part: [] for part in PARTS}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Time what happens inside, adding it to the step's other such times."""
        start = time.perf_counter()
        yield
        self.taken[part][-1] += time.perf_counter() - start

    def next_step(self) -> None:
        """Count from nothing again."""
        for taken in self.taken.values():
            taken.append(0.0)

    def medians(self) -> dict[str, float]:
        """Of all steps but the first, which prepares kernels."""
        return {part: median(taken[1:]) for part, taken in self.taken.items()}


def shortened(config: ModelConfig, memory_bytes: float) -> ModelConfig:
    """A block or a few of each kind that the whole model has, and both its ends.

    Raises:
        ConfigError: not even one of each fits into so much memory.
    """
    all_dense = config.first_k_dense_replace
    dense = min(DENSE, all_dense)
    most = min(MOE, config.num_hidden_layers - all_dense + config.num_nextn_predict_layers)
    for moe in range(most, min(most, 1) - 1, -1):
        short = replace(
            config, num_hidden_layers=dense + moe, first_k_dense_replace=dense,
            num_nextn_predict_layers=0,
        )  # fmt: skip
        needed = BYTES * count(short).params_total
        if needed <= memory_bytes:
            return short
    raise ConfigError(
        f"a model of {dense + moe} blocks of this width takes {needed / 1e9:,.0f} GB to train, but "
        f"a process has {memory_bytes / 1e9:,.0f} here, so this machine is not measured with it; "
        "name other hardware, or plan a narrower model"
    )


def made(short: ModelConfig, dtype: torch.dtype) -> DeepSeekV3:
    """That model, ready to train."""
    machine = Machine(torch.device("cpu"), torch.get_num_threads(), 0.0, dtype)
    return working_copy(DeepSeekV3(short).initialize(), machine)


def is_moe(block: torch.nn.Module) -> bool:
    """Whether a block routes."""
    return isinstance(block, Block) and isinstance(block.mlp, MoE)


def take_steps(
    model: DeepSeekV3, seq_len: int, micro_sequences: int, ranks: Ranks
) -> dict[str, float]:
    """Seconds of each part of a step; all processes take the same number of steps."""
    W, watch = model.config.vocab_size, Stopwatch()
    rows = torch.randint(0, W, (micro_sequences, seq_len)).tolist()
    batch = Batch.from_sequences(rows, rows)
    shared = [] if ranks.is_alone else [Optimizer(model, Optim(), ranks, is_shared=True)]
    optimizer, began = Optimizer(model, Optim(), ranks), time.perf_counter()
    while True:
        watch.next_step()
        _pass(model, batch, watch)
        for one in shared:
            _travel(one, ranks, watch)
        optimizer.collect()
        with watch.of("sum"):
            optimizer.reduce()
        with watch.of("step"):
            optimizer.clip()
            optimizer.step(1e-6)
        spent = min(ranks.everyone(time.perf_counter() - began))
        if len(watch.taken["step"]) > FEWEST and spent > LEAST_S:
            return watch.medians()


def _pass(model: DeepSeekV3, batch: Batch, watch: Stopwatch) -> None:
    """Forward and backward of one micro-batch, block by block."""
    assert batch.labels is not None
    span = Span(*cos_sin(model.config, batch.positions), batch.cu_seqlens, None)
    with watch.of("ends"):
        embedded = model.embed_tokens(batch.tokens)
    x, kept = embedded, []
    for block in model.layers:
        start = x.detach().requires_grad_()
        with watch.of("moe forward" if is_moe(block) else "dense forward"):
            x, routing = block(start, span)
            term = None
            if routing is not None:
                top_k = model.config.num_experts_per_tok
                term = sequence_balance(routing, batch.cu_seqlens, top_k)
        kept.append((block, start, x, term))
    start = x.detach().requires_grad_()
    with watch.of("ends"):
        cross_entropy(model.norm(start), model.lm_head.weight, batch.labels).backward()
    grad = start.grad
    for block, start, out, term in reversed(kept):
        with watch.of("moe backward" if is_moe(block) else "dense backward"):
            ends = [(out, grad)] if term is None else [(out, grad), (term, torch.ones(()))]
            torch.autograd.backward([end for end, _ in ends], [by for _, by in ends])
        grad = start.grad
    with watch.of("ends"):
        embedded.backward(grad)


def _travel(optimizer: Optimizer, ranks: Ranks, watch: Stopwatch) -> None:
    """Gradients to their owners, and working copies back; gradients stay where they were."""
    grads = {name: parameter.grad for name, parameter in optimizer.parameters.items()}
    optimizer.collect()
    ranks.everyone(0)  # who waits for the others does so here
    with watch.of("gather"):
        optimizer.reduce()
    optimizer.clear()
    for name, parameter in optimizer.parameters.items():
        parameter.grad = grads[name]
    weights = [parameter.data for parameter in optimizer.parameters.values()]
    ranks.everyone(0)
    with watch.of("copy"):
        zero.copy_all(ranks, weights, 0)
    ranks.everyone(0)
