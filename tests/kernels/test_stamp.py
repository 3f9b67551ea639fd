"""A stamp spares a start the compiler, and is believed only as long as nothing has changed."""

import os
import subprocess

import pytest

from abyssal.kernels import build, environment, registry

SOURCE = 'extern "C" int64_t ab_seven() { return 7; }\n'
HEADER = "#include <cstdint>\n"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder with one source and a header, and a store, whose library is built and noted."""
    for name in ("ABYSSAL_KERNELS", "ABYSSAL_MARCH", "ABYSSAL_SANITIZE", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ABYSSAL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "seven.h").write_text(HEADER)
    (folder / "seven.cpp").write_text('#include "seven.h"\n' + SOURCE)
    try:
        build.compiler()
    except build.CannotBuildError:
        pytest.skip("no C++ compiler")
    registry.load(folder)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """How often the compiler was asked for its version."""
    calls = []
    really = build.compiler
    monkeypatch.setattr(build, "compiler", lambda: (calls.append(1), really())[1])
    return calls


def test_a_later_start_asks_no_compiler_and_finds_the_same(sources, asked, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    first = registry.load(sources)
    assert not asked
    assert first.functions["seven"]() == 7
    assert first.seconds == 0
    monkeypatch.undo()
    assert first.compiler == build.compiler()


@pytest.mark.parametrize("file", ["seven.cpp", "seven.h"])
def test_a_source_of_the_same_size_and_date_is_seen_to_have_changed(sources, asked, file):
    path = sources / file
    date = path.stat().st_mtime_ns
    new = {"seven.cpp": SOURCE.replace("7", "8"), "seven.h": "#include <stdint.h>"}[file]
    path.write_text(new if file == "seven.h" else '#include "seven.h"\n' + new)
    os.utime(path, ns=(date, date))
    assert registry.load(sources).functions["seven"]() == (8 if file == "seven.cpp" else 7)
    assert asked
    asked.clear()
    registry.load(sources)
    assert not asked  # noted anew


def test_a_new_file_a_lost_library_and_a_damaged_stamp_are_seen(sources, asked):
    (sources / "more.cpp").write_text('#include "seven.h"\n' + SOURCE.replace("seven", "more"))
    found = registry.load(sources)
    assert "more" in found.functions
    assert len(asked) == 1
    found.path.unlink()
    assert registry.load(sources).functions["seven"]() == 7
    assert len(asked) == 2
    (stamp,) = environment.store().glob("*.stamp")
    stamp.write_text("{")
    registry.load(sources)
    assert len(asked) == 3


def test_another_compiler_and_other_flags_have_stamps_of_their_own(sources, asked, monkeypatch):
    compiler = sources.parent / "g++"
    compiler.write_text(f'#!/bin/sh\nexec {build.compiler().command[0]} "$@"\n')
    compiler.chmod(0o755)
    asked.clear()
    monkeypatch.setenv("CXX", str(compiler))
    registry.load(sources)
    registry.load(sources)
    assert len(asked) == 1
    compiler.touch()  # perhaps another version
    registry.load(sources)
    assert len(asked) == 2
    monkeypatch.setenv("ABYSSAL_MARCH", "x86-64")
    registry.load(sources)
    assert len(asked) == 3


def test_what_was_left_out_is_not_noted(sources, asked):
    (sources / "more.cpp").write_text("not C++")
    assert registry.load(sources).problems
    assert registry.load(sources).problems
    assert len(asked) == 2
