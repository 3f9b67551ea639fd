"""What this machine can do, measured in a moment: which precision to train in, and MFU's
denominator.
"""

import ctypes
import resource
import time
from typing import NamedTuple

import torch

from abyssal.parallel.ranks import ALONE, Ranks

_SIZE = 1024  # rows and columns of the measured product
_SIZE_GPU = 8192  # ... on a GPU, which is done with a smaller one before it has begun to hurry
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_SPARE_BYTES = 1 << 26  # asked of the system beyond what is needed, so that it is asked seldom


class Machine(NamedTuple):
    """A machine as training sees it."""

    device: torch.device
    threads: int
    peak_flops: float  # of one large BF16 or FP32 product, whichever is used: MFU's denominator
    dtype: torch.dtype  # of matrix products
    ranks: Ranks = ALONE  # the processes that train together; peak_flops is of all of them

    @property
    def description(self) -> str:
        """One phrase for logs and reports."""
        kind = "CPU threads" if self.device.type == "cpu" else "CPU threads and a GPU"
        name = str(self.dtype).removeprefix("torch.")
        each = "" if self.ranks.is_alone else f"{self.ranks.world} processes of "
        return f"{each}{self.threads} {kind}, {name} at {self.peak_flops / 1e9:,.0f} GFLOP/s"


def measure(precision: str = "auto") -> Machine:
    """Time one product in BF16 and one in FP32; "auto" takes BF16 where it is 1.5 times as fast."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    rates = {
        name: _rate(dtype, device) for name, dtype in dtypes.items() if precision in ("auto", name)
    }
    if precision == "auto":
        precision = "bfloat16" if rates["bfloat16"] > 1.5 * rates["float32"] else "float32"
    return Machine(device, torch.get_num_threads(), rates[precision], dtypes[precision])


def together(machine: Machine, ranks: Ranks) -> Machine:
    """The machines of all ranks as one: rank 0's precision, and what all of them do at once."""
    if ranks.is_alone:
        return machine
    own = str(machine.dtype).removeprefix("torch.")
    agreed = ranks.tell(own)
    machine = machine if agreed == own else measure(agreed)
    return machine._replace(peak_flops=sum(ranks.everyone(machine.peak_flops)), ranks=ranks)


def peak_rss_bytes() -> int:
    """The most memory this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_memory_bytes(machine: Machine) -> int:
    """... on the device that trains; of the largest process."""
    on_cpu = machine.device.type == "cpu"
    mine = peak_rss_bytes() if on_cpu else torch.cuda.max_memory_allocated()
    return int(max(machine.ranks.everyone(mine)))


def keep_memory() -> None:
    """Keep what tensors free for the next ones, for as long as this process lives.

    glibc would give large tensors back to the system one by one, and each step would fault them in
    again, page by page: a seventh of a step of a small model. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, _SPARE_BYTES)


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square product; the best of a few, since the first prepares a kernel."""
    size = _SIZE if device.type == "cpu" else _SIZE_GPU
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # reading a value waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
