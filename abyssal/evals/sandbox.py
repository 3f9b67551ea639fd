"""Programs that a model wrote, run where they can do no harm.

Each run gets namespaces of its own (user, mount, pid, network, ipc, host name, cgroup), a file
system that is the interpreter read-only and an empty /tmp, no capabilities and no new privileges, a
seccomp filter (sandbox_filter.py), limits on CPU time, memory, processes and files, an empty
environment, and a wall clock at whose end every process of it is killed. What it prints is read
only so far. When `run` returns, no process, mount or file of it is left.

It needs Linux 5.14, and no rights where user namespaces are allowed. Where they are not, `run`
refuses; `allow_weak=True` accepts limits and the wall clock alone, which stop accidents, not
intentions.

    seconds   of CPU, of the program and of those it waited for; wall_s from start to end
"""

import contextlib
import functools
import json
import logging
import os
import platform
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from abyssal.errors import SandboxError
from abyssal.evals.sandbox_filter import seccomp_filter

logger = logging.getLogger(__name__)

BINARY = os.path.realpath(sys.executable)  # not that of a virtual environment
LAUNCHER = Path(__file__).with_name("sandbox_launch.py")
GRACE_S = 30.0  # past the wall clock, which the launcher keeps: then it is given up
PIECE = 65536
READ = ("stdout", "stderr", "status")
STRONG = ("user namespace", "mount namespace", "pid namespace", "network namespace",
          "ipc namespace", "hidden file system", "no new privileges", "seccomp filter", "limits",
          "wall clock")  # fmt: skip
WEAK = ("no new privileges", "limits", "wall clock")
REMEDY = (
    "user namespaces must be allowed (sysctl user.max_user_namespaces above 0, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0, on older Debian "
    "kernel.unprivileged_userns_clone=1; Docker: --security-opt seccomp=unconfined) on Linux 5.14 "
    "or newer; to run it with limits and a wall clock only, where nothing else is at stake, say "
    "allow_weak=True"
)

Status = Literal["ok", "failed", "time", "memory", "output", "killed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one run may take; the defaults are ample for an exercise in programming."""

    wall_s: float = 10.0
    cpu_s: int = 10  # of each process
    memory_bytes: int = 1 << 29  # addresses of each process, and memory of all of them together
    disk_bytes: int = 1 << 24  # of all files together; they live in memory too
    output_bytes: int = 1 << 20  # of stdout and stderr together
    processes: int = 16  # threads among them


class Outcome(NamedTuple):
    """What became of a program."""

    status: Status  # failed: ended with a code other than 0; killed: by a signal, or for forks
    stdout: str  # bytes that are not UTF-8 become U+FFFD
    stderr: str
    exit_code: int | None  # minus the signal that ended it; None if it was stopped
    seconds: float
    wall_s: float


def run(
    program: str, *, stdin: str = "", limits: Limits = Limits(), allow_weak: bool = False
) -> Outcome:
    """Run a Python program by itself and say what became of it.

    Raises:
        SandboxError: it cannot be contained here (and allow_weak is not given), or not at all.
    """
    if sys.platform != "linux":
        raise SandboxError(f"programs can only be run on Linux, and this is {sys.platform}")
    try:
        return _run_contained(program, stdin, limits)
    except SandboxError as error:
        if not allow_weak:
            raise
        _warn(str(error))
    with tempfile.TemporaryDirectory(prefix="abyssal-", ignore_cleanup_errors=True) as folder:
        return _Run(_job(program, limits, Path(folder))).outcome(stdin, limits)


def isolation(*, allow_weak: bool = False) -> tuple[str, ...]:
    """What holds programs back on this machine, found out by running an empty one.

    Raises:
        SandboxError: nothing but limits would, and allow_weak is not given.
    """
    try:
        run("")
    except SandboxError:
        if not allow_weak:
            raise
        return WEAK
    return STRONG


@functools.cache
def _warn(reason: str) -> None:
    """Once for each reason."""
    logger.warning("programs run with %s only: %s", ", ".join(WEAK), reason)


def _run_contained(program: str, stdin: str, limits: Limits) -> Outcome:
    return _Run(_job(program, limits, None)).outcome(stdin, limits)


def _job(program: str, limits: Limits, folder: Path | None) -> dict[str, object]:
    """What the launcher is told; a folder to work in where nothing contains the program."""
    library = str(Path(sys.base_prefix) / sys.platlibdir)
    code = seccomp_filter(platform.machine())
    if folder is None and code is None:
        raise SandboxError(
            f"no seccomp filter is known for {platform.machine()}, only for x86_64 and aarch64; "
            f"{REMEDY}"
        )
    home = str(folder or "/tmp")
    python = BINARY if folder else "/python/bin/python3"
    return {
        "program": program,
        "limits": asdict(limits),
        "contained": folder is None,
        "folder": home,
        "binary": BINARY,
        "library": library,
        "filter": code.hex() if code else "",
        "argv": [python, "-s", "-B", "-X", "utf8", "program.py"],
        # A fixed order of sets: the same program does the same thing twice.
        "environment": {
            "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
            "LD_LIBRARY_PATH": library if folder else f"/python/{sys.platlibdir}",
        },
    }  # fmt: skip


class _Run:
    """One launcher on its way: its pipes, what came through them, and its end."""

    def __init__(self, job: dict[str, object]):
        self.started = time.monotonic()
        self.said: dict[str, bytearray] = {
            name: bytearray() for name in ("stdout", "stderr", "status")
        }
        told, control = os.pipe()
        status, says = os.pipe()
        try:
            self.process = subprocess.Popen(
                [BINARY, "-I", "-S", "-B", str(LAUNCHER), str(told), str(says)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(told, says), env={}, cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(control)
            os.close(status)
            raise SandboxError(f"no interpreter to run programs with: {error}") from error
        finally:
            os.close(told)
            os.close(says)
        self.control, self.status = os.fdopen(control, "wb"), os.fdopen(status, "rb")
        message = json.dumps(job).encode()
        self._write_job(struct.pack("=Q", len(message)) + message)

    def _write_job(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # the launcher is gone; its end says why
            self.control.write(message)
            self.control.flush()

    def outcome(self, stdin: str, limits: Limits) -> Outcome:
        """Talk to the program until it ends or is stopped; nothing of it is left afterwards."""
        too_much = False
        try:
            too_much = self._converse(stdin.encode("utf-8", "surrogatepass"), limits)
        finally:
            self._end()
        rows = [json.loads(row) for row in self.said["status"].splitlines()]
        found: dict[str, Any] = {key: value for row in reversed(rows) for key, value in row.items()}
        stdout, stderr = (
            self.said[name][: limits.output_bytes].decode("utf-8", "replace")
            for name in ("stdout", "stderr")
        )
        if "error" in found or not (found or too_much):
            reason = found.get("error") or stderr.strip() or f"exit {self.process.returncode}"
            raise SandboxError(f"a program cannot be contained here ({reason}); {REMEDY}")
        wall_s = time.monotonic() - self.started
        seconds = found.get("seconds", wall_s)
        if too_much or "stopped" in found:
            status: Status = "output" if too_much else found["stopped"]
            return Outcome(status, stdout, stderr, None, seconds, wall_s)
        return Outcome(
            _status(found["exit"], stderr), stdout, stderr, found["exit"], seconds, wall_s
        )

    def _converse(self, stdin: bytes, limits: Limits) -> bool:
        """Feed stdin and read all that comes; True if it was more than anybody asked for."""
        left_s, last = limits.wall_s + GRACE_S, time.monotonic()
        feed, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert feed is not None
        assert stdout is not None
        assert stderr is not None
        os.set_blocking(feed.fileno(), False)
        open_pipes = len(READ)
        with selectors.DefaultSelector() as selector:
            selector.register(feed, selectors.EVENT_WRITE)
            for name, pipe in zip(READ, (stdout, stderr, self.status), strict=True):
                selector.register(pipe, selectors.EVENT_READ, name)
            while open_pipes:
                for key, _ in selector.select(1.0):
                    if key.data is None:
                        stdin = self._feed(feed, stdin, selector)
                    elif piece := os.read(key.fd, PIECE):
                        self.said[key.data] += piece
                    else:
                        selector.unregister(key.fileobj)
                        open_pipes -= 1
                if len(self.said["stdout"]) + len(self.said["stderr"]) > limits.output_bytes:
                    return True
                # As the launcher does, count no time in which the machine stood still.
                now = time.monotonic()
                left_s -= min(now - last, 1.0)
                last = now
                if left_s < 0:
                    raise SandboxError(
                        f"the launcher of a program has not answered for {limits.wall_s + GRACE_S} "
                        "s; this machine is too busy to run it"
                    )
        return False

    @staticmethod
    def _feed(pipe: IO[bytes], stdin: bytes, selector: selectors.BaseSelector) -> bytes:
        """Write what fits; the rest is returned, and after the last the pipe is closed."""
        try:
            stdin = stdin[os.write(pipe.fileno(), stdin[:PIECE]) :]
        except BrokenPipeError:
            stdin = b""  # a program need not read
        if not stdin:
            selector.unregister(pipe)
            pipe.close()
        return stdin

    def _end(self) -> None:
        """Hang up, which makes the launcher kill everything and end; close every pipe."""
        with contextlib.suppress(BrokenPipeError):
            self.control.close()
        try:
            self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # init dies with it, and with init the rest
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr, self.status):
            if pipe:
                pipe.close()


def _status(code: int, stderr: str) -> Status:
    if code == 0:
        return "ok"
    if code == -signal.SIGXCPU:
        return "time"
    last = stderr.rstrip().rpartition("\n")[2]
    if last.startswith("MemoryError"):
        return "memory"
    return "failed" if code > 0 else "killed"
