"""An engine in a process of its own, which is asked one thing at a time and waits otherwise."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

HOST = Path(__file__).with_name("host.py")
BOUND = {  # unbound, two threads sometimes start on one core
    "OMP_PROC_BIND": "true",
    "OMP_PLACES": "cores",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # or every start would compile what is not installed: ours
}


class Unavailable(Exception):
    """An engine that cannot take part, and why."""


class Worker:
    """The asking side."""

    def __init__(self, engine: str, log: Path, environment: dict[str, str], **options: object):
        """Open an engine; `load_s` is what it took from `import torch` to a first token."""
        self.engine = engine
        log.parent.mkdir(parents=True, exist_ok=True)
        python = environment.get("PYTHON", sys.executable)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, str(HOST), engine],
                env=os.environ | BOUND | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log
        self.load_s: float = self._say(options)

    def ask(self, do: object, **arguments: object) -> Any:
        """What one of the engine's methods returns."""
        return self._say({"do": do, **arguments})

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def busy_s(self) -> float:
        """Processor seconds that it has used so far."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _say(self, message: dict[str, object]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # its last words tell more
            print(json.dumps(message), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            words = self._log.read_text(errors="replace").strip().splitlines()
            raise Unavailable(f"{words[-1] if words else 'it ended'} ({self._log})")
        return json.loads(line)["result"]
