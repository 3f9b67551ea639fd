"""A plugin for running the kernels' tests again, where their mistakes show; see test_builds.py.

With --fenced every tensor that a native kernel is given is a copy that ends where memory ends: a
read or write behind it is a segmentation fault. The sanitizers see no tiles and no masked vectors.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from torch import Tensor, UntypedStorage

from abyssal.kernels import registry

settings.register_profile("quick", deadline=None, derandomize=True, max_examples=4, database=None)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fenced", action="store_true", help="memory ends behind every tensor")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fenced"):
        registry.callable_of = fenced(registry.callable_of)
    if problems := registry.library().problems:
        raise pytest.UsageError("; ".join(problems))  # not a test less because a kernel is missing


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the cases of a test keep the first, the last, and one in six."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = [item for group in cases.values() for item in (*group[:-1:6], group[-1])]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


class Fence:
    """A copy of a tensor's memory, with nothing behind it and NaN before."""

    def __init__(self, storage: UntypedStorage) -> None:
        self.size, self.original = storage.nbytes(), storage.data_ptr()
        pages = -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.length = pages + mmap.PAGESIZE
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.pages = _libc.mmap(None, self.length, protection, flags, -1, 0)
        _libc.mprotect(self.pages + pages, mmap.PAGESIZE, 0)
        self.address = self.pages + pages - self.size
        ctypes.memset(self.pages, 0xFF, pages)
        ctypes.memmove(self.address, self.original, self.size)

    def restore(self) -> None:
        """Write what became of the copy into the tensor."""
        ctypes.memmove(self.original, self.address, self.size)
        _libc.munmap(self.pages, self.length)


def fenced(plain: Callable[..., registry.Native]) -> Callable[..., registry.Native]:
    """`registry.callable_of`, whose functions work on fenced copies."""

    def fenced_callable(*which: Any) -> registry.Native:
        function = plain(*which)

        def call(*values: object) -> Any:
            fences: dict[int, Fence] = {}
            moved = list(values)
            for i, value in enumerate(values):
                if isinstance(value, Tensor):
                    storage = value.untyped_storage()
                    if storage.data_ptr() not in fences:
                        fences[storage.data_ptr()] = Fence(storage)
                    fence = fences[storage.data_ptr()]
                    moved[i] = fence.address + value.data_ptr() - fence.original
            try:
                return function(*moved)
            finally:
                for fence in fences.values():
                    fence.restore()

        return call

    return fenced_callable
