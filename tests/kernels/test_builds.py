"""The kernels' tests once more: for other CPUs, under sanitizers, and where memory ends early."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from abyssal.errors import KernelError
from abyssal.kernels import build
from abyssal.kernels import environment as machine

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
OTHERS = ("test_builds.py", "test_registry.py", "test_fp8_triton.py")  # not about one kernel
SANITIZED = "address,undefined"

PLANTED = """
#include <cstdint>
extern "C" void ab_double(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = 2 * x[i];
}
extern "C" int64_t ab_successor(int64_t n) { return (int32_t)n + 1; }
"""
USE = """
import sys
from pathlib import Path
import torch
from abyssal.kernels import registry
from again import fenced
if "--fenced" in sys.argv:
    registry.callable_of = fenced(registry.callable_of)
found = registry.load(Path(sys.argv[1]))
assert not found.problems, found.problems
for name, n in (word.split("=") for word in sys.argv[2].split(",")):
    values = (torch.ones(4), torch.empty(4)) if name == "double" else ()
    found.functions[name](*values, int(n))
    print(name, n, flush=True)
"""


def environment(march="native", sanitize=""):
    """The environment of a process whose kernels are built that way; skips where that cannot be."""
    try:
        tool = build.compiler()
    except build.CannotBuildError:
        pytest.skip("no C++ compiler")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    env |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}  # tests of threads set their own number
    env |= {"ABYSSAL_MARCH": march, "ABYSSAL_SANITIZE": sanitize, "ABYSSAL_KERNELS": "native"}
    if sanitize:
        if platform.system() != "Linux" or tool.is_clang:
            pytest.skip("needs the sanitizers of GCC on Linux")
        # With the library of exceptions, which AddressSanitizer must find when it starts.
        paths = [_file(tool, name) for name in ("libasan.so", "libstdc++.so.6")]
        env |= {"LD_PRELOAD": ":".join(paths), "ASAN_OPTIONS": "detect_leaks=0"}
    return env


def _file(tool, name):
    command = [*tool.command, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run(env, *words):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("march", "sanitize"),
    [
        ("native", ""),
        ("cooperlake", ""),  # BF16 in vectors, no tiles
        ("x86-64-v4", ""),
        ("x86-64", ""),
        ("native", SANITIZED),
        ("x86-64-v3", SANITIZED),
    ],
    ids=lambda value: value or "fenced",
)
def test_the_kernels_pass_their_tests_on(march, sanitize, monkeypatch):
    monkeypatch.setenv("ABYSSAL_MARCH", march)
    try:
        machine.for_cpu()
    except KernelError as error:
        pytest.skip(str(error))
    words = ["-m", "pytest", HERE, "-qsx", "-m", "not slow", "-p", "no:cacheprovider"]
    words += ["-p", "again", "--hypothesis-profile=quick", *(() if sanitize else ("--fenced",))]
    words += [f"--ignore={HERE / name}" for name in OTHERS]
    ran = run(environment(march, sanitize), *words)
    assert ran.returncode == 0, f"{ran.stdout[-6000:]}\n{ran.stderr[-6000:]}"


@pytest.mark.parametrize(
    ("sanitize", "calls", "said"),
    [
        (SANITIZED, "double=4,double=5", "AddressSanitizer: heap-buffer-overflow"),
        (SANITIZED, "successor=4,successor=2147483647", "signed integer overflow"),
        ("", "double=4,double=5", ""),
    ],
    ids=["sanitizer", "overflow", "fence"],
)
def test_a_planted_mistake_is_found(tmp_path, sanitize, calls, said):
    (tmp_path / "planted.cpp").write_text(PLANTED)
    env = environment(sanitize=sanitize) | {"ABYSSAL_CACHE": str(tmp_path / "cache")}
    ran = run(env, "-c", USE, tmp_path, calls, *(() if sanitize else ("--fenced",)))
    assert len(ran.stdout.splitlines()) == 1, ran.stderr  # the first call was in order
    assert ran.returncode != 0
    assert said in ran.stderr
