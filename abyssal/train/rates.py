"""What this machine takes for the parts of a training step, measured for the planner.

Blocks, head, gradients and the optimizer are timed in steps of a short model (short_model.py), a
few kinds of work alone. Nothing here knows of layouts: the planner puts the parts together
(abyssal/plan/measured.py).

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
from abyssal.kernels import registry
from abyssal.kernels.attention import mla_attention
from abyssal.kernels.rms_norm import add_rms_norm
from abyssal.model.rope import cos_sin
from abyssal.model.transformer import DeepSeekV3
from abyssal.parallel.ranks import Ranks
from abyssal.plan.hardware import Accelerator, Cpu
from abyssal.plan.measured import Measured, step_bytes
from abyssal.train import machine
from abyssal.train.short_model import is_moe, made, shortened, take_steps

LEAST_S = 0.3  # of one measurement
FEWEST = 5  # calls

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def measure(
    config: ModelConfig, precision: str, seq_len: int, micro_sequences: int, ranks: Ranks
) -> Measured:
    """What passes of that size take in this process, or in the slowest of all, at the same time.

    Raises:
        ConfigError: there is no such precision to measure in, or no room for the model.
    """
    short = _check(config, precision, ranks.world)
    ranks.join()
    torch.manual_seed(0)
    dtype, tokens = _DTYPES[precision], seq_len * micro_sequences
    model = made(short, dtype)
    found = take_steps(model, seq_len, micro_sequences, ranks)
    routing = sum(is_moe(block) for block in model.layers)
    dense, moe = tokens * max(1, len(model.layers) - routing), tokens * max(1, routing)
    weights = list(model.parameters())
    total, size = sum(weight.numel() for weight in weights), sum(w.nbytes for w in weights)
    step = step_bytes(precision, "bfloat16", is_sum=not ranks.is_alone)
    own = Measured(
        seq_len=seq_len,
        dense_forward_s=found["dense forward"] / dense,
        dense_backward_s=found["dense backward"] / dense,
        moe_forward_s=found["moe forward"] / moe,
        moe_backward_s=found["moe backward"] / moe,
        ends_s=found["ends"] / tokens,
        peak_s=1 / machine.measure(precision).peak_flops,
        product_s=_product(model, dtype, tokens),
        core_s=_core(config, dtype, tokens, seq_len),
        row_s=_rows(config, dtype, tokens),
        step_s=found["step"] / (step * total),
        sum_s=None if ranks.is_alone else found["sum"] / (4 * total),
        gather_s=None if ranks.is_alone else found["gather"] / (4 * total),
        copy_s=None if ranks.is_alone else found["copy"] / size,
    )
    if ranks.is_alone:
        return own
    said = ranks.everyone(dataclasses.asdict(own))
    return Measured(**{name: max(one[name] for one in said) for name in said[0]})


def this_machine(
    config: ModelConfig,
    precision: str,
    seq_len: int,
    micro_sequences: int,
    processes: int = 1,
) -> Accelerator:
    """This machine as the planner's hardware; several processes measure at the same time.

    Raises:
        ConfigError: it cannot be measured so, or torchrun failed.
    """
    _check(config, precision, processes)
    if processes == 1:
        found = measure(config, precision, seq_len, micro_sequences, Ranks())
    else:
        found = _by_torchrun(config, precision, seq_len, micro_sequences, processes)
    return as_hardware(found, precision, _memory_bytes() / processes)


def as_hardware(found: Measured, precision: str, memory_bytes: float) -> Accelerator:
    """What was measured, as one of the planner's devices."""
    peak = 1 / found.peak_s
    return Accelerator(
        name="this machine",
        peak_flops={precision: peak, "bfloat16": peak},
        memory_bytes=memory_bytes,
        bandwidth=1 / found.row_s,
        cpu=cpu(),
        measured={precision: found},
    )


def cpu() -> Cpu:
    """What multiplies BF16 here."""
    return "amx" if "AMX BF16" in registry.status().features else "vector"


def _check(config: ModelConfig, precision: str, processes: int) -> ModelConfig:
    """What to measure with; refused before anything is built or started."""
    if precision not in _DTYPES:
        raise ConfigError(
            f"precision={precision!r} is not measured on this machine; take one of "
            f"{', '.join(_DTYPES)}"
        )
    return shortened(config, _memory_bytes() / processes)


def _by_torchrun(
    config: ModelConfig, precision: str, seq_len: int, micro_sequences: int, processes: int
) -> Measured:
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
        return Measured(**json.loads(said.read_text()))


def _seconds(work: Callable[[], object]) -> float:
    """The median time of a call, the first not counted."""
    work()
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < LEAST_S:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken)


def _back(out: Tensor, grad: Tensor, *leaves: Tensor) -> None:
    torch.autograd.grad(out, leaves, grad)  # backward() would add to what the last one left


def _product(model: DeepSeekV3, dtype: torch.dtype, tokens: int) -> float:
    """Seconds a FLOP of the projections of attention and the shared expert, there and back."""
    linears = [module for module in model.layers[-1].modules() if isinstance(module, nn.Linear)]
    seconds = flops = 0.0
    for linear in linears:
        rows, columns = linear.weight.shape
        weight = torch.randn(rows, columns, dtype=dtype).requires_grad_()
        x = torch.randn(tokens, columns, dtype=dtype).requires_grad_()
        grad = torch.randn(tokens, rows, dtype=dtype)
        seconds += _seconds(lambda: _back(nn.functional.linear(x, weight), grad, x, weight))  # noqa: B023
        flops += 6.0 * tokens * rows * columns
    return seconds / flops


def _core(config: ModelConfig, dtype: torch.dtype, tokens: int, seq_len: int) -> float:
    """Seconds a FLOP of causal attention, counted over half of the square."""
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
    return seconds / (3.0 * tokens * seq_len * H * (N + R + V))


def _rows(config: ModelConfig, dtype: torch.dtype, tokens: int) -> float:
    """Seconds a byte of a sum and its norm: four of a number forward, five backward."""
    shape = (tokens, config.hidden_size)
    x, y = (torch.randn(shape, dtype=dtype).requires_grad_() for _ in "xy")
    weight = torch.ones(config.hidden_size, dtype=dtype).requires_grad_()
    grad = torch.randn(shape, dtype=dtype)

    def work() -> None:
        total, normed = add_rms_norm(x, y, weight, 1e-6)
        torch.autograd.grad((total, normed), (x, y, weight), (grad, grad))

    return _seconds(work) / (9.0 * grad.nbytes)


def _memory_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main() -> None:
    """Measure and say it; of several processes the first one does."""
    folder, precision, seq_len, rows, *out = sys.argv[1:]
    ranks, config = Ranks.of_environment(), ModelConfig.load(folder)
    found = measure(config, precision, int(seq_len), int(rows), ranks)
    text = json.dumps(dataclasses.asdict(found))
    if not ranks.is_first:
        return
    if out:
        Path(out[0]).write_text(text)
    else:
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
