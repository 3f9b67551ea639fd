"""Programs of the worst kind, run for real: contained, and nothing of them left."""

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import abyssal
from abyssal.errors import SandboxError
from abyssal.evals import sandbox
from abyssal.evals.sandbox import Limits, Outcome
from abyssal.evals.sandbox_filter import seccomp_filter
from abyssal.evals.sandbox_launch import SUBREAPER, descendants

ROOT = Path(abyssal.__file__).parent.parent


def isolated() -> bool:
    try:
        return bool(sandbox.isolation())
    except SandboxError:
        return False


pytestmark = pytest.mark.skipif(not isolated(), reason="no user namespaces for this user here")
SHORT, LONG = Limits(wall_s=1.0), Limits(wall_s=60.0, cpu_s=60)


def run(program: str, **settings) -> Outcome:
    return sandbox.run(textwrap.dedent(program), **settings)


@pytest.fixture(autouse=True)
def _nothing_is_left():
    """No process and no mount. Orphans come to us: they cannot hide behind their parent's end."""
    libc = ctypes.CDLL(None)
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    mounts, processes = Path("/proc/self/mountinfo").read_text(), descendants(os.getpid())
    yield
    assert descendants(os.getpid()) == processes
    assert Path("/proc/self/mountinfo").read_text() == mounts
    libc.prctl(SUBREAPER, 0, 0, 0, 0)


def test_what_it_prints_reads_and_returns():
    found = run("print(input() + 'é'); import sys; sys.exit('no')", stdin="hé\n")
    assert (found.status, found.stdout, found.stderr) == ("failed", "héé\n", "no\n")
    assert found.exit_code == 1
    assert 0 < found.seconds <= found.wall_s


@pytest.mark.parametrize(
    ("program", "status", "code"),
    [("", "ok", 0), ("import os; os._exit(7)", "failed", 7), ("exit(3)", "failed", 3),
     ("1 / 0", "failed", 1), ("def f(:", "failed", 1), ("raise MemoryError", "memory", 1),
     ("import os; os.abort()", "killed", -signal.SIGABRT),
     ("import os; os.kill(os.getpid(), 9)", "killed", -signal.SIGKILL),
     ("import ctypes; ctypes.string_at(0)", "killed", -signal.SIGSEGV)],
)  # fmt: skip
def test_how_it_ended(program, status, code):
    found = run(program)
    assert (found.status, found.exit_code) == (status, code)


@pytest.mark.parametrize(
    ("program", "status"),
    [("import time; time.sleep(1000)", "time"),
     ("while True: pass", "time"),
     ("import signal, time\nfor s in range(1, 32):\n  if s not in (9, 19): signal.signal(s, 1)\n"
      "time.sleep(1000)", "time"),
     ("import os\nwhile True: os.write(1, b'x' * 99999)", "output"),
     ("import os\nwhile True: os.write(2, b'x' * 99999)", "output"),
     ("x = bytearray(10 * 10**9)", "memory"),
     ("x = []\nwhile True: x.append(bytearray(10**7))", "memory")],
)  # fmt: skip
def test_too_much_of_anything_ends_it(program, status):
    found = run(program, limits=SHORT if status == "time" else LONG)
    assert found.status == status
    assert len(found.stdout) + len(found.stderr) <= 2 * LONG.output_bytes


def test_cpu_time_ends_it_before_the_wall_clock_does():
    found = run("while True: pass", limits=Limits(wall_s=60, cpu_s=1))
    assert (found.status, found.exit_code) == ("time", -signal.SIGXCPU)


def test_a_fork_bomb_is_contained():
    found = run(
        """
        import os, sys
        print("lit", flush=True)
        while True:
            try:
                os.fork()
            except OSError as error:
                if error.errno != 11: raise
        """,
        limits=SHORT,
    )
    assert (found.status, found.stdout) == ("time", "lit\n")


def test_it_gets_as_many_processes_as_it_may_and_no_more():
    program = """
        import os, time
        for i in range(100):
            try:
                if os.fork() == 0:
                    time.sleep(1000)
            except BlockingIOError:
                break
        print(i)
    """
    found = run(program, limits=Limits(processes=5))
    assert (found.status, found.stdout) == ("ok", "4\n")


@pytest.mark.parametrize(
    "take", ["bytearray(os.urandom(1)) * size", "mmap.mmap(-1, size); x[:] = bytes(1) * size"]
)
def test_children_cannot_take_together_what_one_may_not(take):
    program = f"""
        import mmap, os, time
        for _ in range(5):
            if os.fork() == 0:
                break
        size = 20 << 20
        x = {take}
        time.sleep(1000)
    """
    found = run(program, limits=Limits(wall_s=60, memory_bytes=100 << 20))
    assert found.status == "memory"


def test_daemons_end_with_it():
    program = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        os.wait()
        print("left a daemon")
    """
    found = run(program)
    assert (found.status, found.stdout) == ("ok", "left a daemon\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "8.8.8.8", "::1"])
def test_there_is_no_network(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = run(f"""
            import socket
            socket.socket({int(family)}, socket.SOCK_STREAM).connect(("{host}", {port}))
        """)
    assert found.status == "failed"
    assert "PermissionError" in found.stderr


def test_processes_inside_may_talk_to_each_other():
    found = run("""
        import os, socket, subprocess, threading
        a, b = socket.socketpair()
        a.send(b"hello")
        print(b.recv(5))
        thread = threading.Thread(target=print, args=("thread",))
        thread.start()
        thread.join()
        print(subprocess.check_output(["/python/bin/python3", "-c", "print(6 * 7)"]))
    """)
    assert found.stdout == "b'hello'\nthread\nb'42\\n'\n"


PATHS = ["/etc/passwd", "/etc/shadow", "/root", "/home", "/proc", "/sys", "/var", "/opt", str(ROOT),
         os.path.expanduser("~"), "/proc/1/mem", sys.prefix]  # fmt: skip


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_nothing_outside_can_be_seen(path):
    found = run(f"""
        import os
        for place in ({path!r}, "../../../.." + {path!r}, "/tmp/link"):
            if place == "/tmp/link":
                os.symlink({path!r}, place)
            print(os.path.exists(place))
    """)
    assert found.stdout == "False\n" * 3


def test_what_is_installed_cannot_be_imported_and_the_standard_library_can():
    found = run("""
        import asyncio, bz2, ctypes, decimal, hashlib, lzma, random, sqlite3, ssl, zlib
        import multiprocessing, re, tempfile, unittest, zoneinfo
        for name in ("numpy", "torch", "pip", "abyssal"):
            try:
                __import__(name)
                print(name)
            except ModuleNotFoundError:
                pass
    """)
    assert (found.status, found.stdout) == ("ok", "")


@pytest.mark.parametrize(
    "path", ["/", "/usr/lib", "/dev", "/etc", "/python/lib", "/python/bin/python3", "/lib"]
)
def test_it_writes_into_its_own_folder_and_nowhere_else(path):
    found = run(f"""
        import os
        open("mine", "w").write("x")
        path = {path!r}
        try:
            open(path if os.path.isfile(path) else os.path.join(path, "new"), "w")
        except OSError as error:
            print(error.errno)
    """)
    assert found.stdout.strip() in {str(errno.EROFS), str(errno.EACCES), str(errno.ETXTBSY)}


def test_files_take_only_so_much_together():
    found = run("""
        written = 0
        try:
            for i in range(100):
                with open(f"file{i}", "wb", 0) as file:
                    written += file.write(bytes(1 << 20))
        except OSError:
            print(written)
    """)
    assert 0 < int(found.stdout) <= Limits().disk_bytes


def test_one_file_is_no_longer_than_that_even_with_holes():
    found = run("f = open('big', 'wb'); f.truncate(1 << 40)")
    assert found.status == "failed"
    assert "File too large" in found.stderr


def test_the_one_who_asked_cannot_be_reached():
    found = run(f"""
        import os, signal
        print(os.getppid(), os.getuid())
        for pid in ({os.getpid()}, {os.getppid()}):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                print("nobody")
        for sent in range(1, 32):  # nor can the first process inside
            os.kill(1, sent)
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            print("alone")
    """)
    assert found.stdout == "1 1000\nnobody\nnobody\nalone\n"


def test_it_has_an_environment_of_its_own(monkeypatch):
    monkeypatch.setenv("SECRET", "word")
    found = run("import os, sys; print(sorted(os.environ)); print(os.listdir(), os.getcwd())")
    names = ["HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "TMPDIR"]
    assert found.stdout == f"{names}\n['program.py'] /tmp\n"


def test_it_holds_no_open_file_but_the_three():
    found = run("""
        import os
        for fd in range(1024):
            try:
                os.fstat(fd)
                print(fd)
            except OSError:
                pass
    """)
    assert found.stdout == "0\n1\n2\n"


@pytest.mark.parametrize(
    "call",
    ["unshare(0x10000000)", "mount(0, b'/tmp', b'tmpfs', 0, 0)", "ptrace(16, 1, 0, 0)",
     "setns(0, 0)", "chroot(b'/tmp')", "memfd_create(b'x', 0)", "shmget(0, 4096, 0o1600)",
     "ioctl(0, 0x5412, b'x')", "personality(0)", "umount2(b'/tmp', 2)",
     "process_vm_readv(1, 0, 0, 0, 0, 0)", "socket(40, 1, 0)", "socket(16, 3, 0)",
     "syscall(56, 0x10000011, 0, 0, 0, 0)" if os.uname().machine == "x86_64" else "reboot(0)"],
)  # fmt: skip
def test_a_call_that_is_not_needed_is_refused(call):
    found = run(f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.{call}, ctypes.get_errno())
    """)
    assert found.stdout == f"-1 {errno.EPERM}\n"


def test_rights_do_not_come_back():
    found = run("""
        import ctypes, os
        for change in (os.setuid, os.setgid):
            try:
                change(0)
            except OSError as error:
                print(error.errno)
        print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))  # no new privileges
        try:
            os.mknod("device", 0o20666, os.makedev(1, 1))
        except PermissionError:
            print("no device")
    """)
    assert found.stdout == f"{errno.EINVAL}\n{errno.EINVAL}\n1\nno device\n"


def test_it_does_the_same_twice():
    program = "print({'a', 'b', 'c', 'd'})"
    assert run(program).stdout == run(program).stdout


@pytest.mark.parametrize(
    "text", ["print('\\udcff')", "x = '\\ud800'", "\x00", "# " + "x" * 200_000]
)
def test_any_text_is_a_program(text):
    assert run(text).status in {"ok", "failed"}


def test_stdin_that_nobody_reads_holds_nothing_up():
    assert run("print(1)", stdin="x" * 5_000_000).stdout == "1\n"
    assert run("import sys; print(len(sys.stdin.read()))", stdin="x" * 500_000).stdout == "500000\n"


def test_fifty_in_a_row_and_four_at_once():
    program = "print(sum(range(int(input()))))"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: run(program, stdin=str(n)), range(50)))
    assert [outcome.stdout for outcome in found] == [f"{sum(range(n))}\n" for n in range(50)]


ELSEWHERE = """
import sys
sys.path.insert(0, {root!r})
from abyssal.errors import SandboxError
from abyssal.evals import sandbox
{body}
"""


def test_nothing_outlives_a_caller_that_is_killed():
    body = "print('go', flush=True); sandbox.run('import time; time.sleep(1000)')"
    script = ELSEWHERE.format(root=str(ROOT), body=body)
    with subprocess.Popen([sys.executable, "-I", "-c", script], stdout=subprocess.PIPE) as caller:
        assert caller.stdout
        assert caller.stdout.readline() == b"go\n"
        while len(processes := descendants(caller.pid)) < 3:
            time.sleep(0.01)
        caller.kill()
    outside, *_ = processes
    os.waitpid(outside, 0)
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_may_use_it_too():
    body = "print(sandbox.run('import os; print(os.getuid(), os.listdir())'))"
    script = ELSEWHERE.format(root=str(ROOT), body=body)
    stranger = {"user": 12345, "group": 12345, "extra_groups": [], "cwd": "/"}
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            found = subprocess.run(
                [python, "-I", "-c", script], capture_output=True, text=True, check=True, **stranger
            )
        except (OSError, subprocess.CalledProcessError):
            continue  # in a folder that others may not enter, or too old
        assert "stdout=\"1000 ['program.py']\\n\"" in found.stdout
        return
    pytest.skip("no interpreter, or no package, that others may read")


def without_namespaces(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """... where user namespaces are used up."""
    script = ELSEWHERE.format(root=str(ROOT), body=textwrap.dedent(body))
    command = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -I -c "$1"'
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", command, sys.executable, script],
        capture_output=True, text=True, check=False, cwd="/", env={**os.environ, **environment},
    )  # fmt: skip


def test_it_refuses_where_it_cannot_isolate():
    found = without_namespaces("""
        for ask in (lambda: sandbox.run("print(1)"), sandbox.isolation):
            try:
                ask()
                print("ran")
            except SandboxError as error:
                print(error)
    """)
    assert found.returncode == 0, found.stderr
    first, second = found.stdout.splitlines()
    assert first == second
    for said in ("user namespace: No space left", "max_user_namespaces", "allow_weak=True"):
        assert said in first


def test_it_runs_with_limits_alone_when_told_and_says_so(tmp_path):
    found = without_namespaces(
        """
        print(sandbox.isolation(allow_weak=True))
        quick, slow = sandbox.Limits(wall_s=1), sandbox.Limits(wall_s=60)
        for program in (
            "print(input(), __import__('os').environ.keys() == {'HOME'})",
            "while True: pass",
            "x = bytearray(10**10)",
            "import os\\nif os.fork(): print('daemon')\\nelse: import time; time.sleep(1000)",
            "import os\\nwhile True: os.write(1, b'x' * 9999)",
            "import os, time\\nfor _ in range(50): os.fork() or time.sleep(1000)",
        ):
            limits = quick if program.startswith("while") else slow
            print(sandbox.run(program, stdin="in", limits=limits, allow_weak=True).status)
        """,
        TMPDIR=str(tmp_path),
    )
    assert found.stdout.splitlines() == [
        str(sandbox.WEAK), "ok", "time", "memory", "ok", "output", "killed",
    ]  # fmt: skip
    assert found.stderr.count("limits, wall clock only") == 1
    assert not list(tmp_path.iterdir())


def test_a_filter_is_known_for_two_machines():
    assert seccomp_filter("mips") is None
    for machine in ("x86_64", "aarch64"):
        code = seccomp_filter(machine)
        assert code is not None
        assert len(code) % 8 == 0
        assert len(code) < 8 * 4096
