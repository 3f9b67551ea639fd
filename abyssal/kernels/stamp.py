"""What an earlier start found out about a compiled library, so that this one need not ask again.

A start must know that the library is that of these sources, this compiler and this CPU. `build`
reads and hashes the sources and asks the compiler for its version; a stamp beside the library
notes what all of it looked like from outside (sizes, times of change), and is believed as long as
that is the same to the nanosecond. A time of change (ctime) cannot be set by hand, so that copies
with older dates are seen, too.
"""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from abyssal.kernels import build


class Stamp:
    """The stamp of one folder of sources under these flags, in a store."""

    def __init__(self, folder: Path, store: Path, flags: Sequence[str], openmp: str):
        """Look at what decides the library: before it is built, so that later edits are seen."""
        settings = [str(folder), os.environ.get("CXX", ""), *build.FLAGS, *flags, openmp]
        self._store = store
        self._path = store / f"{build.key_of(*settings, *build.cpu().values())}.stamp"
        self._seen = [*_sources(folder), *_compilers()]

    def found(self) -> tuple[build.Compiler, build.Built] | None:
        """The compiler and its library, if nothing has changed since they were noted."""
        try:
            noted = json.loads(self._path.read_text())
        except (OSError, ValueError):  # none yet; not a file of ours
            return None
        path = self._store / noted["library"]
        if noted["seen"] != self._seen or not path.is_file():
            return None
        for file in (path, self._path):
            build.touch(file)
        command, version = noted["compiler"]
        signatures = {name: build.Signature(*one) for name, one in noted["signatures"].items()}
        return build.Compiler(tuple(command), version), build.Built(path, signatures, {}, 0.0)

    def note(self, tool: build.Compiler, built: build.Built) -> None:
        """Remember a whole library; with a store that cannot be written, every start asks again."""
        if built.failed:
            return
        noted = {
            "library": built.path.name,
            "compiler": tool,
            "signatures": built.signatures,
            "seen": self._seen,
        }
        with (
            suppress(OSError),
            tempfile.NamedTemporaryFile("w", dir=self._store, delete=False) as file,
        ):
            json.dump(noted, file)
            file.flush()
            os.replace(file.name, self._path)


def _sources(folder: Path) -> list[list[Any]]:
    """Every source and header as it looks from outside."""
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.name.endswith(build.SUFFIXES)]
        return sorted(_look(entry.name, entry.stat()) for entry in files)


def _compilers() -> list[list[Any]]:
    """The programs that `build.compiler` may call, as they look from outside."""
    chosen = os.environ.get("CXX")
    names = shlex.split(chosen) if chosen else build.COMPILERS
    places = [place for name in names if (place := shutil.which(name))]
    return [_look(place, os.stat(place)) for place in places]


def _look(name: str, stat: os.stat_result) -> list[Any]:
    return [name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
