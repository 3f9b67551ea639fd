"""Native twins of the kernels: the C++ functions of this folder, compiled for this machine.

``native("rms_norm")`` is the function ``ab_rms_norm`` of one of the .cpp files, or None where twins
are off or cannot be built; then the caller computes with torch. The first call compiles, once for
all processes (``build``). What keeps a twin away is said once, at WARNING, and by
``abyssal info --machine``.

Variables of the environment, the first three for tests and for whoever looks into things:

    ABYSSAL_KERNELS=reference            no twins
    ABYSSAL_MARCH=x86-64-v3              twins for a lesser CPU than this
    ABYSSAL_SANITIZE=address,undefined   twins that report what they do wrong
    ABYSSAL_CACHE=/a/folder              where compiled twins are kept, instead of ~/.cache/abyssal
"""

import ctypes
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from abyssal.errors import AbyssalError, KernelError
from abyssal.kernels import build

SOURCES = Path(__file__).parent
# Names for -march, and what /proc/cpuinfo must list to run the result.
_MARCHES = {
    "native": "",
    "x86-64": "",
    "x86-64-v2": "sse4_2 ssse3 popcnt",
    "x86-64-v3": "avx2 fma bmi2 f16c movbe",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
    "cooperlake": "avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx512_bf16 clwb pku",
}
_NO_AMX = ("-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8")
_SANITIZERS = ("address", "undefined")
_FEATURES = {
    "__AMX_BF16__": "AMX BF16",
    "__AMX_INT8__": "AMX INT8",
    "__AVX512BF16__": "AVX512 BF16",
    "__AVX512VNNI__": "AVX512 VNNI",
    "__AVX512F__": "AVX512",
    "__AVX2__": "AVX2",
    "__ARM_NEON": "NEON",
}
_CTYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}

logger = logging.getLogger(__name__)

Native = Callable[..., Any]  # an int, or None where the C function returns nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """The native functions of this process, or what stands in their way."""

    path: Path | None = None
    compiler: build.Compiler | None = None
    flags: tuple[str, ...] = ()
    signatures: Mapping[str, build.Signature] = field(default_factory=dict)
    seconds: float = 0.0  # this process compiled for
    problems: tuple[str, ...] = ()
    functions: Mapping[str, Native] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
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
    if not _are_wanted():
        return Library(problems=("ABYSSAL_KERNELS=reference",))
    flags = (*_for_cpu(), *_sanitized())
    try:
        tool = build.compiler()
        openmp = "" if tool.is_clang else _openmp_in_use()
        built = build.build(sources, _store(), tool, flags, openmp)
        dll = ctypes.CDLL(str(built.path))
    except build.CannotBuildError as error:
        return Library(problems=(f"no native kernels: {error}",))
    except OSError as error:  # of CDLL, which names the file and the symbol
        return Library(problems=(f"no native kernels: {error}",))
    functions = {
        name: _callable(dll, name, signature)
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


def _find(name: str) -> Native | None:
    """A function nobody has asked for yet."""
    found = library()
    assert not found.path or name in found.signatures, f"no source defines ab_{name}"
    _functions[name] = found.functions.get(name)
    return _functions[name]


# Calls


def _callable(dll: ctypes.CDLL, name: str, signature: build.Signature) -> Native:
    """A function of the library that takes what Python has; a call costs about 2 us."""
    function = getattr(dll, f"ab_{name}")
    function.argtypes = [_CTYPES[kind] for kind in signature.kinds]
    function.restype = ctypes.c_int64 if signature.returns_int else None
    pointers = [i for i, kind in enumerate(signature.kinds) if kind == "p"]
    expected = len(signature.kinds)

    def call(*given: object) -> Any:
        values = list(given)
        if len(values) != expected:
            raise TypeError(f"ab_{name} takes {expected} values, got {len(values)}")
        for i in pointers:
            value = values[i]
            values[i] = _ADDRESS[type(value)](value)
        return function(*values)

    return call


class _Addresses(dict[type, Callable[[Any], int | None]]):
    """How to find the address of a value, by its type."""

    def __missing__(self, kind: type) -> Callable[[Any], int | None]:
        raise TypeError(f"{kind.__name__}, expected a Tensor, an array, an address or None")


def _address_of_array(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


_ADDRESS = _Addresses(
    {
        Tensor: Tensor.data_ptr,
        nn.Parameter: Tensor.data_ptr,
        np.ndarray: _address_of_array,
        np.memmap: _address_of_array,
        int: int,
        NoneType: lambda none: None,
    }
)


# The environment and the machine


def _are_wanted() -> bool:
    wanted = os.environ.get("ABYSSAL_KERNELS", "native")
    if wanted not in ("native", "reference"):
        raise KernelError(
            f"ABYSSAL_KERNELS={wanted}, expected native or reference; "
            "unset it to have native kernels"
        )
    return wanted == "native"


def _for_cpu() -> tuple[str, ...]:
    """The flags that say which CPU to compile for."""
    march = os.environ.get("ABYSSAL_MARCH", "native")
    if march not in _MARCHES:
        raise KernelError(
            f"ABYSSAL_MARCH={march}, expected one of {', '.join(_MARCHES)}; unset it to compile "
            "for this CPU"
        )
    has = build.cpu()["flags"].split()
    lacks = [flag for flag in _MARCHES[march].split() if flag not in has]
    if lacks or (march != "native" and platform.machine() not in ("x86_64", "AMD64")):
        raise KernelError(
            f"ABYSSAL_MARCH={march}, but this CPU has no {', '.join(lacks) or 'x86 instructions'}; "
            "unset it to compile for this CPU"
        )
    if platform.machine() in ("arm64", "aarch64"):
        return ("-mcpu=native",)
    is_denied = "amx_tile" in has and march == "native" and not _may_use_amx()
    return (f"-march={march}", *(_NO_AMX if is_denied else ()))


def _may_use_amx() -> bool:
    """Ask Linux for this process's right to use AMX tiles, which have to be asked for."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def _sanitized() -> tuple[str, ...]:
    """The flags for a library that reports what it does wrong; after -O3 they win."""
    wanted = os.environ.get("ABYSSAL_SANITIZE", "")
    if not wanted:
        return ()
    if unknown := [name for name in wanted.split(",") if name not in _SANITIZERS]:
        raise KernelError(
            f"ABYSSAL_SANITIZE={wanted}: {unknown[0]!r} is none of {', '.join(_SANITIZERS)}; "
            "unset it to have fast kernels"
        )
    if "address" in wanted and not any("asan" in name for name in _loaded_libraries()):
        raise KernelError(
            f"ABYSSAL_SANITIZE={wanted}, but its runtime must be loaded first; start with "
            "LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0"
        )
    return (
        f"-fsanitize={wanted}",
        "-fno-sanitize=nonnull-attribute",  # memcpy of nothing from nowhere
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-O1",
        "-g1",
    )


def _store() -> Path:
    """The folder of compiled kernels."""
    if chosen := os.environ.get("ABYSSAL_CACHE"):
        return Path(chosen).expanduser().absolute() / "kernels"
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "abyssal" / "kernels"


def _openmp_in_use() -> str:
    """The OpenMP library that torch brought along: a second one would bring threads of its own."""
    found = [name for name in _loaded_libraries() if Path(name).name.startswith("libgomp")]
    of_torch = [name for name in found if name.startswith(str(Path(torch.__file__).parent))]
    return next(iter(of_torch or found), "")


def _loaded_libraries() -> list[str]:
    """The files that are mapped into this process; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/" in line})


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
