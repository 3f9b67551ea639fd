"""What this machine does of each kind of work in a training step, measured for the planner.

Products with a model's own matrices, its experts, its attention, its head, elementwise passes, the
optimizer, and what processes send each other: each alone, for a second or two. Products are
measured with as many rows as a pass has, since few rows are slower each. Nothing else here knows of
layouts: the planner puts these rates together (abyssal/plan/time.py).

    python -m abyssal.train.rates CONFIG_FOLDER PRECISION SEQ_LEN ROWS    # one JSON object; also by
                                                                         # torchrun, all at once

T tokens    D hidden_size
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.kernels import adamw
from abyssal.kernels.attention import mla_attention
from abyssal.kernels.rms_norm import add_rms_norm
from abyssal.model.moe import Experts, Routing
from abyssal.model.rope import cos_sin
from abyssal.model.transformer import Block
from abyssal.parallel.ranks import Ranks
from abyssal.plan.hardware import Accelerator, Rates
from abyssal.train.loss import cross_entropy
from abyssal.train.machine import keep_memory

LEAST_S = 0.4  # of one measurement
PARAMETERS = 1 << 24  # that the optimizer's pass is measured on
TRAVEL = 1 << 23  # float32 numbers that travel between processes

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def measure_rates(
    config: ModelConfig, precision: str, seq_len: int, micro_sequences: int, ranks: Ranks
) -> Rates:
    """The rates of this process in passes of that size, while the other ranks measure theirs.

    Raises:
        ConfigError: there is no such precision to measure in.
    """
    if precision not in _DTYPES:
        raise ConfigError(
            f"precision={precision!r} is not measured on this machine; take one of "
            f"{', '.join(_DTYPES)}"
        )
    keep_memory()
    ranks.join()
    torch.manual_seed(0)
    dtype = _DTYPES[precision]
    tokens = seq_len * micro_sequences
    measured = Rates(
        dense_flops=_dense(config, dtype, tokens),
        expert_flops=_experts(config, dtype, tokens),
        core_flops=_core(config, dtype, tokens, seq_len),
        head_flops=_head(config, dtype, tokens),
        row_bytes=_rows(config, dtype, tokens),
        step_bytes=_step(dtype),
        call_s=_call(),
    )
    if ranks.is_alone:
        return measured
    travel = torch.ones(TRAVEL)
    by_all = _seconds(lambda: ranks.sum(travel.fill_(1.0)), times=7)
    by_one = _seconds(lambda: ranks.sum(travel.fill_(1.0), 0), times=7)
    copied = _seconds(lambda: ranks.copy(travel, 0), times=7)
    size = travel.nbytes
    return dataclasses.replace(
        measured, sum_bytes=size / by_all, gather_bytes=size / by_one, copy_bytes=size / copied
    )


def this_machine(
    config: ModelConfig, precision: str, seq_len: int, micro_sequences: int, processes: int = 1
) -> Accelerator:
    """This machine as the planner's hardware; several processes measure at the same time.

    Raises:
        ConfigError: it was not measured in that precision, or torchrun failed.
    """
    if processes == 1:
        rates = measure_rates(config, precision, seq_len, micro_sequences, Ranks())
    else:
        rates = _by_torchrun(config, precision, seq_len, micro_sequences, processes)
    return Accelerator(
        name="this machine",
        peak_flops={precision: rates.dense_flops, "bfloat16": rates.dense_flops},
        memory_bytes=_memory_bytes() / processes,
        bandwidth=rates.row_bytes,
        is_cpu=True,
        rates={precision: rates},
    )


def _by_torchrun(
    config: ModelConfig, precision: str, seq_len: int, micro_sequences: int, processes: int
) -> Rates:
    with tempfile.TemporaryDirectory() as folder:
        config.save(folder)
        said = Path(folder) / "rates.json"
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        command = [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"),
            *(f"--master-port={port}", "-m", "abyssal.train.rates", folder, precision),
            *(str(seq_len), str(micro_sequences), str(said)),
        ]
        environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ)
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        if ran.returncode or not said.is_file():
            raise ConfigError(
                f"{processes} processes could not measure this machine: {ran.stderr[-300:].strip()}"
            )
        return Rates(**json.loads(said.read_text()))


def _seconds(work: Callable[[], object], times: int = 0) -> float:
    """The median time of a call, the first not counted; of `times` calls where others take part."""
    work()
    taken: list[float] = []
    while len(taken) < (times or 5) or (not times and sum(taken) < LEAST_S):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)


def _back(out: Tensor, grad: Tensor, *leaves: Tensor) -> None:
    torch.autograd.grad(out, leaves, grad)  # backward() would add to what the last one left


def _dense(config: ModelConfig, dtype: torch.dtype, tokens: int) -> float:
    """Projections of attention and the shared expert, forward and backward."""
    block = Block(config, config.num_hidden_layers)  # an MoE block
    shared = [block.mlp.shared_experts] if config.n_shared_experts else []
    linears = [
        module
        for part in (block.self_attn, *shared)
        for module in part.modules()  # type: ignore[union-attr]
        if isinstance(module, nn.Linear)
    ]
    seconds = flops = 0.0
    for linear in linears:
        rows, columns = linear.weight.shape
        weight = torch.randn(rows, columns, dtype=dtype).requires_grad_()
        x = torch.randn(tokens, columns, dtype=dtype).requires_grad_()
        grad = torch.randn(tokens, rows, dtype=dtype)
        seconds += _seconds(lambda: _back(nn.functional.linear(x, weight), grad, x, weight))  # noqa: B023
        flops += 6.0 * tokens * rows * columns
    return flops / seconds


def _experts(config: ModelConfig, dtype: torch.dtype, tokens: int) -> float:
    """Experts in even use."""
    E, K, D = config.n_routed_experts, config.num_experts_per_tok, config.hidden_size
    experts = Experts(config)
    for parameter in experts.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=dtype) * 0.02
    chosen = torch.rand(tokens, E).topk(K).indices
    routing = Routing(chosen, torch.full((tokens, K), 1 / K), torch.empty(0))
    x = torch.randn(tokens, D, dtype=dtype).requires_grad_()
    grad = torch.randn(tokens, D, dtype=dtype)
    seconds = _seconds(lambda: _back(experts(x, routing), grad, x, *experts.parameters()))
    return 18.0 * tokens * K * D * config.moe_intermediate_size / seconds


def _core(config: ModelConfig, dtype: torch.dtype, tokens: int, seq_len: int) -> float:
    """Causal attention, counted over half of the square."""
    H, R = config.num_attention_heads, config.qk_rope_head_dim
    N, V = config.qk_nope_head_dim, config.v_head_dim
    q = torch.randn(tokens, H, N + R, dtype=dtype).requires_grad_()
    kv = torch.randn(tokens, H, N + V, dtype=dtype).requires_grad_()
    k_rope = torch.randn(tokens, R, dtype=dtype).requires_grad_()
    positions = torch.arange(seq_len).repeat(tokens // seq_len)
    cos, sin = cos_sin(config, positions)
    borders = torch.arange(0, tokens + 1, seq_len)
    grad = torch.randn(tokens, H, V, dtype=dtype)
    seconds = _seconds(
        lambda: _back(mla_attention(q, kv, k_rope, cos, sin, borders, 0.1), grad, q, kv, k_rope)
    )
    return 3.0 * tokens * seq_len * H * (N + R + V) / seconds


def _head(config: ModelConfig, dtype: torch.dtype, tokens: int) -> float:
    """The head with its loss, forward and backward."""
    W, D = config.vocab_size, config.hidden_size
    hidden = torch.randn(tokens, D, dtype=dtype).requires_grad_()
    head = (torch.randn(W, D, dtype=dtype) * 0.02).requires_grad_()
    labels = torch.randint(0, W, (tokens,))
    seconds = _seconds(
        lambda: torch.autograd.grad(cross_entropy(hidden, head, labels), (hidden, head))
    )
    return 6.0 * tokens * W * D / seconds


def _rows(config: ModelConfig, dtype: torch.dtype, tokens: int) -> float:
    """A sum and its norm: two read and two written forward, four read and one written backward."""
    shape = (tokens, config.hidden_size)
    x, y = (torch.randn(shape, dtype=dtype).requires_grad_() for _ in "xy")
    weight = torch.ones(config.hidden_size, dtype=dtype).requires_grad_()
    grad = torch.randn(shape, dtype=dtype)

    def work() -> None:
        total, normed = add_rms_norm(x, y, weight, 1e-6)
        torch.autograd.grad((total, normed), (x, y, weight), (grad, grad))

    return 9.0 * grad.nbytes / _seconds(work)


def _step(dtype: torch.dtype) -> float:
    """AdamW with BF16 moments, and the norm of its gradients before."""
    master = torch.randn(PARAMETERS)
    first, second = (torch.zeros(PARAMETERS, dtype=torch.bfloat16) for _ in "mv")
    working = master if dtype == torch.float32 else master.to(dtype)
    grad = torch.randn(PARAMETERS, dtype=dtype)
    rates = adamw.Rates(1e-3, 0.1, (0.9, 0.95), 1e-8, 1)

    def work() -> None:
        adamw.norm([grad])
        adamw.adamw(master, grad, 1.0, first, second, working, rates)

    width = grad.element_size()
    passed = 2 * width + 8 + 8 + (width if working is not master else 0)
    return passed * PARAMETERS / _seconds(work)


def _call() -> float:
    """One small operation, as autograd and the allocator see it."""
    x = torch.ones(8).requires_grad_()
    return _seconds(lambda: [x + 1.0 for _ in range(1000)]) / 1000


def _memory_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main() -> None:
    """Measure and say it; of several processes the first one does."""
    folder, precision, seq_len, rows, *out = sys.argv[1:]
    ranks, config = Ranks.of_environment(), ModelConfig.load(folder)
    found = measure_rates(config, precision, int(seq_len), int(rows), ranks)
    text = json.dumps(dataclasses.asdict(found))
    if not ranks.is_first:
        return
    if out:
        Path(out[0]).write_text(text)
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
