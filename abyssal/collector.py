"""Python's garbage collector, paused while much is made that stays.

Every few thousand new objects it looks through all there are: some 65 ms in a process that has
imported torch, for nothing where modules or a vocabulary are being read. Looking is only put off;
whoever had the collector switched off or on has it so again afterwards.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Inside, nothing looks for garbage; what no cycle holds is freed at once, as ever."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
