"""Servers in processes of their own, for those who measure them from outside."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from abyssal.errors import ConfigError

START_S = 300.0  # a server that has not said where it listens by then will not
STOP_S = 60.0  # that it has to let answers under way finish


class Running(NamedTuple):
    """A process, and the files that it writes to in place of a terminal."""

    process: subprocess.Popen[bytes]
    out: Path
    log: Path  # standard error

    def lines(self) -> list[str]:
        """Its log so far."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]


class Served(NamedTuple):
    """Where a server listens, and its process."""

    url: str
    running: Running


@contextlib.contextmanager
def running(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A process, told to end afterwards, and made to if it does not."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out", Path(folder) / "log"
        with out.open("wb") as told, log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=told, stderr=errors, env=env)
        try:
            yield Running(process, out, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def served(folder: str | Path, *options: str) -> Iterator[Served]:
    """`abyssal serve` of a model folder on a port of its own, gone again afterwards.

    Without an option that names one it keeps no history.

    Raises:
        ConfigError: it ended before it listened; the message has its own last words.
    """
    command = [sys.executable, "-m", "abyssal", "serve", str(folder), "--port", "0", "--json"]
    if "--history" not in options:
        command.append("--no-history")
    with running([*command, *options]) as started:
        until_s = time.monotonic() + START_S
        while not (told := started.out.read_text()).endswith("\n"):
            if started.process.poll() is not None or time.monotonic() > until_s:
                words = started.lines()[-1:] or ["it wrote nothing"]
                raise ConfigError(f"the server did not come to listen: {words[0]}")
            time.sleep(0.05)
        yield Served(json.loads(told)["url"], started)
