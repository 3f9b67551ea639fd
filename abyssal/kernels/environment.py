"""What the environment and the machine say about native kernels: whether, for which CPU, where.

Variables of the environment, the first three for tests and for whoever looks into things:

    ABYSSAL_KERNELS=reference            no twins
    ABYSSAL_MARCH=x86-64-v3              twins for a lesser CPU than this
    ABYSSAL_SANITIZE=address,undefined   twins that report what they do wrong
    ABYSSAL_CACHE=/a/folder              where compiled twins are kept, instead of ~/.cache/abyssal

Of these, a value that cannot be followed raises KernelError.
"""

import ctypes
import os
import platform
from pathlib import Path

import torch

from abyssal.errors import KernelError
from abyssal.kernels import build

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


def are_wanted() -> bool:
    """Whether native kernels may be used."""
    wanted = os.environ.get("ABYSSAL_KERNELS", "native")
    if wanted not in ("native", "reference"):
        raise KernelError(
            f"ABYSSAL_KERNELS={wanted}, expected native or reference; "
            "unset it to have native kernels"
        )
    return wanted == "native"


def for_cpu() -> tuple[str, ...]:
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


def sanitized() -> tuple[str, ...]:
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


def store() -> Path:
    """The folder of compiled kernels."""
    if chosen := os.environ.get("ABYSSAL_CACHE"):
        return Path(chosen).expanduser().absolute() / "kernels"
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "abyssal" / "kernels"


def openmp_in_use() -> str:
    """The OpenMP library that torch brought along: a second one would bring threads of its own."""
    found = [name for name in _loaded_libraries() if "/libgomp" in name]
    of_torch = [name for name in found if name.startswith(str(Path(torch.__file__).parent))]
    return next(iter(of_torch or found), "")


def _loaded_libraries() -> list[str]:
    """The files that are mapped into this process; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    return sorted({line.split(maxsplit=5)[5] for line in lines if "/" in line})
