"""Native twins of the kernels: the C++ functions of this folder, compiled for this machine.

``native("rms_norm")`` is the function ``ab_rms_norm`` of one of the .cpp files, or None where twins
are off or cannot be built; then the caller computes with torch. The first call compiles, once for
all processes (``build``). What keeps a twin away is said once, at WARNING, and by
``abyssal info --machine``. What the environment may ask for is said in ``environment``.
"""

import ctypes
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from abyssal.errors import AbyssalError
from abyssal.kernels import build, environment
from abyssal.kernels.calls import Native as Native
from abyssal.kernels.calls import callable_of
from abyssal.kernels.stamp import Stamp

SOURCES = Path(__file__).parent
_FEATURES = {
    "__AMX_BF16__": "AMX BF16",
    "__AMX_INT8__": "AMX INT8",
    "__AVX512BF16__": "AVX512 BF16",
    "__AVX512VNNI__": "AVX512 VNNI",
    "__AVX512F__": "AVX512",
    "__AVX2__": "AVX2",
    "__ARM_NEON": "NEON",
}

logger = logging.getLogger(__name__)


class Library(NamedTuple):
    """The native functions of this process, or what stands in their way."""

    path: Path | None = None
    compiler: build.Compiler | None = None
    flags: tuple[str, ...] = ()
    signatures: Mapping[str, build.Signature] = MappingProxyType({})
    seconds: float = 0.0  # this process compiled for
    problems: tuple[str, ...] = ()
    functions: Mapping[str, Native] = MappingProxyType({})


class Status(NamedTuple):
    """What a person may want to know about the native kernels."""

    path: Path | None  # None: everything runs on the references
    compiler: str
    flags: str
    features: tuple[str, ...]  # of the CPU that the kernels use
    functions: int
    problems: tuple[str, ...]


_lock = threading.RLock()
_library: Library | None = None
_functions: dict[str, Native | None] = {}  # those that were asked for
_reference_only = 0


def native(name: str) -> Native | None:
    """The C function ab_<name>, or None: twins are off, or could not be built.

    It takes tensors and arrays (in memory as the function expects; only their address is passed),
    ints, floats, and None for a null pointer. Ask before every call: tests turn twins off and on.

    Raises:
        KernelError: a variable of the environment asks for what cannot be.
    """
    if _reference_only:
        return None
    try:
        return _functions[name]
    except KeyError:
        return _find(name)


@contextmanager
def reference_only() -> Iterator[None]:
    """Inside, every kernel of this process runs on its reference."""
    global _reference_only
    with _lock:
        _reference_only += 1
    try:
        yield
    finally:
        with _lock:
            _reference_only -= 1


def library() -> Library:
    """The library of this process, compiled if need be on the first call."""
    global _library
    with _lock:
        if _library is None:
            _library = load(SOURCES)
            for problem in _library.problems:
                logger.warning("%s; the slower references stand in", problem)
        return _library


def status() -> Status:
    """What the native kernels of this process are, compiled if need be."""
    found = library()
    return Status(
        path=found.path,
        compiler=found.compiler.version if found.compiler else "",
        flags=" ".join((*build.FLAGS, *found.flags)) if found.path else "",
        features=_features(found),
        functions=len(found.functions),
        problems=found.problems,
    )


def load(sources: Path) -> Library:
    """The library of a folder's .cpp files, as the environment wants it.

    Raises:
        KernelError: a variable of the environment asks for what cannot be.
    """
    if not environment.are_wanted():
        return Library(problems=("ABYSSAL_KERNELS=reference",))
    flags = (*environment.for_cpu(), *environment.sanitized())
    try:
        tool, built = _built(sources, flags)
        dll = ctypes.CDLL(str(built.path))
    except build.CannotBuildError as error:
        return Library(problems=(f"no native kernels: {error}",))
    except OSError as error:  # of CDLL, which names the file and the symbol
        return Library(problems=(f"no native kernels: {error}",))
    functions = {
        name: callable_of(dll, name, signature)
        for name, signature in built.signatures.items()
        if signature.source not in built.failed
    }
    problems = tuple(f"not compiled: {problem}" for problem in built.failed.values())
    return Library(
        path=built.path,
        compiler=tool,
        flags=flags,
        signatures=built.signatures,
        seconds=built.seconds,
        problems=problems,
        functions=functions,
    )


def _built(sources: Path, flags: tuple[str, ...]) -> tuple[build.Compiler, build.Built]:
    """The compiler and the library on disk: as an earlier start noted them, or found out anew."""
    store, openmp = environment.store(), environment.openmp_in_use()
    stamp = Stamp(sources, store, flags, openmp)
    if found := stamp.found():
        return found
    tool = build.compiler()
    built = build.build(sources, store, tool, flags, "" if tool.is_clang else openmp)
    stamp.note(tool, built)
    return tool, built


def _find(name: str) -> Native | None:
    """A function nobody has asked for yet."""
    found = library()
    assert not found.path or name in found.signatures, f"no source defines ab_{name}"
    _functions[name] = found.functions.get(name)
    return _functions[name]


def _features(found: Library) -> tuple[str, ...]:
    """The instruction sets that the compiler was told it may use."""
    if not found.compiler:
        return ()
    command = [*found.compiler.command, *build.FLAGS, *found.flags, "-dM", "-E", "-x", "c++", "-"]
    macros = subprocess.run(command, input="", capture_output=True, text=True).stdout
    return tuple(name for macro, name in _FEATURES.items() if f"#define {macro} " in macros)


def main() -> int:
    """Compile the kernels and say so in a line: the end of `make setup`."""
    logging.basicConfig(format="%(message)s")
    try:
        found = status()
    except AbyssalError as error:
        logger.error("error: %s", error)
        return 2
    if found.path:
        seconds = library().seconds
        took = f"compiled in {seconds:.0f} s" if seconds else "compiled before"
        line = f"{found.functions} native kernels ({', '.join(found.features)}), {took}\n"
        sys.stdout.write(line)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
