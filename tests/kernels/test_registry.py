"""Native kernels compiled, kept and called, on sources of a few lines."""

import ctypes
import json
import logging
import os
import re
import subprocess
import sys
import timeit
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import abyssal
from abyssal.errors import KernelError
from abyssal.kernels import build, environment, registry
from abyssal.kernels.registry import load, native, reference_only

ADD = """
#include "scale.h"

extern "C" void ab_add(const float* a, const float* b, /* no * here */ float* c, int64_t n,
                       double scale) {  // c = a + scale * b
#pragma omp parallel for
  for (int64_t i = 0; i < n; i++) c[i] = a[i] + SCALE * (float)scale * b[i];
}
"""
COUNT = """
#include <cstdint>

extern "C" int64_t ab_count_given(const float* a, const float* b, const void* const* c) {
  return (a != nullptr) + (b != nullptr) + (c != nullptr);
}
extern "C" int64_t ab_eight(const float*, const float*, float*, int64_t n, int64_t m, double,
                            const float*, int64_t threads) {
  return n + m + threads;
}
extern "C" int64_t ab_seven() { return 7; }
"""


@pytest.fixture(autouse=True)
def _a_machine_of_its_own(tmp_path, monkeypatch):
    for name in ("ABYSSAL_KERNELS", "ABYSSAL_MARCH", "ABYSSAL_SANITIZE", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ABYSSAL_CACHE", str(tmp_path / "cache"))
    try:
        build.compiler()
    except build.CannotBuildError:
        pytest.skip("no C++ compiler")


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of two sources and a header that stands for the kernels of the package."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "scale.h").write_text("#include <cstdint>\nconstexpr float SCALE = 1;\n")
    (folder / "add.cpp").write_text(ADD)
    (folder / "count.cpp").write_text(COUNT)
    monkeypatch.setattr(registry, "SOURCES", folder)
    monkeypatch.setattr(registry, "_library", None)
    monkeypatch.setattr(registry, "_functions", {})
    return folder


def compiled(caplog):
    """How many files each build since the last question compiled."""
    counts = [int(r.args[0]) for r in caplog.records if r.msg.startswith("compiling")]
    caplog.clear()
    return counts


def added(a, b, scale=1.0):
    c = torch.empty(len(a))
    native("add")(a, b, c, len(a), scale)
    return c.tolist()


# Calls


def test_tensors_arrays_numbers_and_none_are_passed_as_c_expects_them(sources):
    assert added(torch.ones(3), torch.arange(3.0), scale=10) == [1, 11, 21]
    assert added(torch.nn.Parameter(torch.ones(2)), np.ones(2, np.float32)) == [2, 2]
    row = torch.arange(6.0).view(2, 3)[1]
    assert added(row, row.data_ptr()) == [6, 8, 10]
    assert native("count_given")(row, None, row.numpy()) == 2
    assert native("seven")() == 7
    assert native("eight")(None, None, None, 2**40, 1, 0.5, None, -3) == 2**40 - 2


@pytest.mark.parametrize(
    "wrong", [(None,) * 3, (None,) * 6, ([1.0], None, None, 0, 1.0), (None, None, None, 0.5, 1.0)]
)
def test_what_c_would_misread_is_refused(sources, wrong):
    with pytest.raises((TypeError, ctypes.ArgumentError), match=r"takes 5|list|wrong type"):
        native("add")(*wrong)


def test_a_call_with_eight_values_costs_microseconds(sources):
    a, eight = torch.ones(4), native("eight")
    runs = timeit.repeat(lambda: eight(a, a, a, 2, 3, 1.0, None, 4), number=2000, repeat=7)
    assert min(runs) / 2000 < 10e-6  # 2 us on an idle core


def test_a_name_that_no_source_defines_is_a_bug(sources):
    with pytest.raises(AssertionError, match="ab_substract"):
        native("substract")


# What is compiled, and when


def test_editing_one_source_compiles_one(sources, caplog):
    load(sources)
    assert compiled(caplog) == [2]
    load(sources)
    assert compiled(caplog) == []
    (sources / "count.cpp").write_text(COUNT.replace("return 7", "return 8"))
    assert load(sources).functions["seven"]() == 8
    assert compiled(caplog) == [1]
    (sources / "scale.h").write_text("#include <cstdint>\nconstexpr float SCALE = 2;\n")
    c = torch.empty(1)
    load(sources).functions["add"](torch.ones(1), torch.ones(1), c, 1, 1.0)
    assert c == 3
    assert compiled(caplog) == [1]
    (sources / "count.cpp").write_text(COUNT)  # as it was first
    assert load(sources).functions["seven"]() == 7
    assert compiled(caplog) == []


def test_other_flags_and_other_processors_have_objects_of_their_own(sources, caplog, monkeypatch):
    paths = {load(sources).path}
    monkeypatch.setenv("ABYSSAL_SANITIZE", "undefined")
    paths.add(load(sources).path)
    monkeypatch.setattr(build, "cpu", lambda: {"model": "another", "flags": ""})
    paths.add(load(sources).path)
    assert len(paths) == 3
    assert compiled(caplog) == [2, 2, 2]


def test_many_processes_at_once_compile_once(sources, tmp_path):
    script = (
        "import sys; from pathlib import Path; from abyssal.kernels import build\n"
        "found = build.build(*map(Path, sys.argv[1:]), build.compiler(), ['-O0'], '')\n"
        "print(found.path)"
    )

    def run(_):
        return subprocess.run(
            [sys.executable, "-c", script, sources, tmp_path / "store"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(abyssal.__file__).parents[1],
        )

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(run, range(4)))
    assert len({ran.stdout for ran in runs}) == 1
    assert sum("compiling" in ran.stderr for ran in runs) == 1
    left = {path.suffix for path in (tmp_path / "store").iterdir()}
    assert left == {".so", ".o", ""}  # the last is the lock


def test_what_nobody_used_for_a_month_leaves_the_store(sources, tmp_path):
    old = load(sources).path
    interrupted = old.parent / "tmp123"
    interrupted.mkdir()
    for path in old.parent.iterdir():
        os.utime(path, (0, 0))
    (sources / "count.cpp").write_text(COUNT.replace("return 7", "return 8"))
    new = load(sources).path
    assert new.exists()
    assert not old.exists()
    assert not interrupted.exists()
    assert len(list(new.parent.glob("*.o"))) == 2  # add.cpp's is in use


def test_torch_and_the_kernels_share_one_pool_of_threads(sources):
    before = {name for name in environment._loaded_libraries() if "omp" in name}
    load(sources)
    assert {name for name in environment._loaded_libraries() if "omp" in name} == before


# What stands in the way


def test_a_source_that_does_not_compile_is_left_out_and_told_once(sources, caplog):
    (sources / "count.cpp").write_text(COUNT.replace("return 7", "return seven"))
    assert native("seven") is None
    assert added(torch.ones(1), torch.ones(1)) == [2]
    told = [r.getMessage() for r in caplog.records if r.name == registry.__name__]
    assert len(told) == 1
    assert "not compiled: count.cpp: count.cpp:11:40: error:" in told[0]
    compiled(caplog)
    assert load(sources).problems == registry.library().problems
    assert compiled(caplog) == []  # the complaint is kept as well


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CXX", "/no/such/compiler", ["/no/such/compiler", "install"]),
        ("CXX", "false", ["CXX=false", "install"]),
        ("ABYSSAL_CACHE", "/dev/null", ["/dev/null", "ABYSSAL_CACHE"]),
        ("ABYSSAL_KERNELS", "reference", ["ABYSSAL_KERNELS=reference"]),
    ],
)
def test_without_a_library_the_references_stand_in_and_it_is_said_once(
    sources, caplog, monkeypatch, name, value, told
):
    monkeypatch.setenv(name, value)
    assert native("add") is None
    assert native("seven") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert all(part in record.getMessage() for part in told)
    assert registry.status().path is None
    assert registry.status().problems


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ABYSSAL_KERNELS", "torch", "native or reference"),
        ("ABYSSAL_MARCH", "pentium", "x86-64-v3"),
        ("ABYSSAL_SANITIZE", "adress", "address, undefined"),
        ("ABYSSAL_SANITIZE", "address", "LD_PRELOAD"),
    ],
)
def test_a_value_that_cannot_be_followed_is_an_error_with_a_remedy(
    sources, monkeypatch, name, value, expected
):
    monkeypatch.setenv(name, value)
    with pytest.raises(KernelError) as caught:
        native("add")
    assert f"{name}={value}" in str(caught.value)
    assert expected in str(caught.value)


def test_a_lesser_cpu_can_be_asked_for_but_not_one_that_this_is_not(monkeypatch):
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build, "cpu", lambda: {"flags": "avx2 fma bmi2 f16c movbe"})
    monkeypatch.setenv("ABYSSAL_MARCH", "x86-64-v3")
    assert environment.for_cpu() == ("-march=x86-64-v3",)
    monkeypatch.setenv("ABYSSAL_MARCH", "x86-64-v4")
    with pytest.raises(KernelError, match="this CPU has no avx512f"):
        environment.for_cpu()


@pytest.mark.parametrize("allowed", [True, False])
def test_tiles_are_used_only_where_the_system_lets_us(monkeypatch, allowed):
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build, "cpu", lambda: {"flags": "avx512f amx_tile amx_bf16"})
    monkeypatch.setattr(environment, "_may_use_amx", lambda: allowed)
    assert ("-mno-amx-tile" in environment.for_cpu()) == (not allowed)


def test_twins_can_be_turned_off_for_a_while(sources):
    with reference_only():
        assert native("seven") is None
        with reference_only():
            pass
        assert native("seven") is None
    assert native("seven")() == 7


# The kernels of the package


def test_all_kernels_of_the_package_compile(monkeypatch):
    monkeypatch.delenv("ABYSSAL_CACHE")
    found = registry.library()
    assert found.problems == ()
    assert found.functions.keys() == found.signatures.keys()


@pytest.mark.slow
def test_the_compiler_has_no_remarks_on_the_kernels():
    tool = build.compiler()
    sources = map(str, registry.SOURCES.glob("*.cpp"))
    command = [*tool.command, *build.FLAGS, *environment.for_cpu(), "-Werror", "-fsyntax-only"]
    subprocess.run([*command, *sources], check=True)


def test_info_tells_what_the_kernels_use_and_what_is_missing(sources, abyssal_command):
    (sources / "count.cpp").write_text("not C++")
    ran = abyssal_command("info", "--machine", "--json")
    told = json.loads(ran.out)["kernels"]
    assert ran.code == 0
    assert told["compiler"] == build.compiler().version
    assert told["functions"] == 1
    assert "count.cpp" in told["problems"][0]
    assert Path(told["path"]).parent == sources.parent / "cache" / "kernels"
    assert "-O3" in told["flags"]
    has_avx2 = "avx2" in build.cpu()["flags"].split()
    assert ("AVX2" in told["features"]) == has_avx2


def test_setup_builds_the_kernels_and_says_so_in_a_line(sources, capsys):
    assert registry.main() == 0
    assert re.fullmatch(r"4 native kernels \(.*\), compiled in \d+ s\n", capsys.readouterr().out)
    registry._library = None
    assert registry.main() == 0
    assert capsys.readouterr().out.endswith(", compiled before\n")


def test_setup_goes_on_without_a_compiler_and_says_what_to_install(sources, caplog, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert registry.main() == 1
    assert "install" in caplog.text
