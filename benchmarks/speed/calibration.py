"""How fast this machine is now: what it reads a second, and what it multiplies.

A shared machine drifts by a fifth and more within minutes, so these are measured before each turn
of each engine, and a figure is a share of what was measured beside it.
"""

import ctypes
import mmap
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "calibrate.c"
MEMORY_BYTES, CACHE_BYTES = 1 << 30, 32 << 20  # larger than any share of L3; larger than all of L2
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


class Calibrator:
    """Buffers and matrices that stay, so that a look takes a fraction of a second."""

    def __init__(self, library: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        self._threads, self._reader = threads, _compiled(Path(library))
        self._memory = mmap.mmap(-1, MEMORY_BYTES)
        for start in range(0, MEMORY_BYTES, 1 << 20):
            self._memory[start : start + (1 << 20)] = b"\1" * (1 << 20)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._products: dict[str, tuple[float, Callable[[], object]]] = {}
        for name, size in (("fp32", 1024), ("bf16", 2048), ("int8", 2048)):
            self._products[name] = 2 * size**3, _product(name, size)
        self.measure()  # kernels are prepared

    def measure(self) -> dict[str, float]:
        """Bytes a second from memory and from L3, operations a second of products by kind."""
        found = {
            "dram": self._read(MEMORY_BYTES, 1),
            "l3": self._read(CACHE_BYTES, 16),
        }
        for name, (operations, product) in self._products.items():
            found[name] = operations / statistics.median(_timed(product) for _ in range(5))
        return found

    def _read(self, num_bytes: int, times: int) -> float:
        total = ctypes.c_uint64()

        def rate() -> float:
            size, repeats = ctypes.c_int64(num_bytes), ctypes.c_int64(times)
            data, threads = ctypes.c_void_p(self._address), ctypes.c_int(self._threads)
            elapsed_s: float = self._reader(data, size, repeats, threads, ctypes.byref(total))
            return num_bytes * times / elapsed_s

        return statistics.median(rate() for _ in range(3))


def _compiled(library: Path) -> Callable[..., float]:
    """read_s of calibrate.c, compiled unless it is there already."""
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        library.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", *FLAGS, str(SOURCE), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library.resolve())).read_s
    function.restype = ctypes.c_double
    found: Callable[..., float] = function
    return found


def _product(kind: str, size: int) -> Callable[[], object]:
    import torch

    if kind == "int8":
        a = torch.ones(size, size, dtype=torch.int8)
        return lambda: torch._int_mm(a, a)
    b = torch.ones(size, size, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[kind])
    return lambda: b @ b


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
