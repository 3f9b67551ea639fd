"""The script that sandbox.py starts: it builds a jail, runs one program in it, and tidies up.

It is run by its path and uses the standard library alone, since nothing of the package is visible
where it goes. Four processes: this one, which stays outside, watches and ends everything; one
that writes the id maps of the namespaces and is gone; `init`, the first process of the new pid
namespace, which builds the file system and whose end is the end of everything inside; and the
program.

    argv   CONTROL STATUS: a pipe the job is read from, whose end of file means stop (so nothing
           outlives the caller), and a pipe for rows of JSON that say what became of the program

namespaces(7), user_namespaces(7), pid_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to import than the jail to build
    from collections.abc import Callable
    from typing import Any, NoReturn

    Job = dict[str, Any]

INSIDE = 1000  # the only user and group that exist inside
NOBODY = 65534  # who that is outside, where the caller is root
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
PACKAGES = ("site-packages", "dist-packages")  # what is installed is nobody's business
WATCH_S = 0.02  # how often memory and processes are counted
COUNTED = ("RssAnon:", "RssShmem:", "VmSwap:")  # pages shared by several count for each
LONGEST_TICK_S = 1.0  # that one such wait counts for

NEWNS, NEWCGROUP, NEWUTS = 0x20000, 0x2000000, 0x4000000
NEWIPC, NEWUSER, NEWPID, NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, READ_ONLY_NO_SUID = 2, -100, 0x8000, 3
PDEATHSIG, DUMPABLE, SECCOMP, CAPBSET_DROP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38
PIVOT_ROOT, CAPSET, MOUNT_SETATTR = {  # system calls that libc does not always wrap
    "aarch64": (41, 91, 442),
}.get(os.uname().machine, (155, 126, 442))

libc = ctypes.CDLL(None, use_errno=True)


def call(step: str, name: str, *arguments: int | bytes | None) -> None:
    """A function of libc; OSError names the step that failed."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if getattr(libc, name)(*wide) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), step)


def main() -> None:
    control, status = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(control, False)
    os.set_inheritable(status, False)
    job = read_job(control)
    # Python's own handler would make init a process that can be interrupted from inside.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    call("subreaper", "prctl", SUBREAPER, 1, 0, 0, 0)
    if job["contained"]:
        enter_namespaces()
    init = os.fork()
    if init == 0:
        guarded(status, lambda: be_init(job, control, status))
    try:
        watch(init, control, job, status)
    finally:
        end_all(init)


def read_job(control: int) -> Job:
    """The job: its length in 8 bytes, then JSON; the pipe stays open while it is wanted."""
    (size,) = struct.unpack("=Q", os.read(control, 8))
    parts = []
    while size:
        parts.append(os.read(control, size))
        size -= len(parts[-1])
    job: Job = json.loads(b"".join(parts))
    return job


def say(status: int, **row: object) -> None:
    os.write(status, (json.dumps(row) + "\n").encode())


def guarded(status: int, action: Callable[[], None]) -> NoReturn:
    """Do it and end this process; what goes wrong is said."""
    try:
        action()
    except OSError as error:
        step = error.filename if isinstance(error.filename, str) else "start"
        say(status, error=f"{step}: {error.strerror}", step=step)
    finally:
        os._exit(1)


# Outside


def enter_namespaces() -> None:
    """New namespaces, all but that of mounts; one user is mapped into them."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and is_mapped(NOBODY):  # root's processes are never too many for the kernel
        uid = gid = NOBODY
        os.setgroups([])
    waits, ready = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(ready)
        os._exit(write_maps(os.getppid(), uid, gid) if os.read(waits, 1) else 0)
    try:
        call("user namespace", "unshare", NEWUSER | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP)
        os.write(ready, b"!")
    finally:
        os.close(ready)
        os.close(waits)
        failed = os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1])
    if failed:
        raise OSError(failed, os.strerror(failed), "user namespace")


def is_mapped(uid: int) -> bool:
    """Whether a user exists in the namespace this process is in."""
    with open("/proc/self/uid_map") as file:
        rows = [list(map(int, row.split())) for row in file]
    return any(first <= uid < first + count for first, _, count in rows)


def write_maps(pid: int, uid: int, gid: int) -> int:
    """Make user and group INSIDE of a process's namespace these of ours; 0, or what went wrong."""
    rows = (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE} {uid} 1"),
        ("gid_map", f"{INSIDE} {gid} 1"),
    )
    try:
        for name, row in rows:
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(row)
    except OSError as error:
        return error.errno or 1
    return 0


def watch(init: int, control: int, job: Job, status: int) -> None:
    """Return when init has ended, the caller hung up, or all together took too much."""
    limits = job["limits"]
    poll = select.poll()
    poll.register(os.pidfd_open(init), select.POLLIN)
    poll.register(control, select.POLLHUP)
    left_s, last = limits["wall_s"], time.monotonic()
    while not poll.poll(1000 * max(0.0, min(WATCH_S, left_s))):
        # A machine that stood still meanwhile did not give the program that time.
        now = time.monotonic()
        left_s -= min(now - last, LONGEST_TICK_S)
        last = now
        pids = descendants(init)
        stopped = None
        if left_s <= 0:
            stopped = "time"
        elif sum(map(memory_bytes, pids)) > limits["memory_bytes"]:
            stopped = "memory"
        elif len(pids) > limits["processes"] + 1:
            stopped = "killed"
        if stopped:
            say(status, stopped=stopped)
            return


def end_all(init: int) -> None:
    """Kill init and whatever it leaves behind, and wait until all of it is gone."""
    os.kill(init, signal.SIGKILL)  # still ours to reap, so the number is nobody else's
    while pids := descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, 0)


def descendants(pid: int) -> list[int]:
    """The processes below one, as this process numbers them."""
    found, todo = [], [pid]
    while todo:
        for path in glob.glob(f"/proc/{todo.pop()}/task/*/children"):
            try:
                with open(path) as file:
                    below = list(map(int, file.read().split()))
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += below
            todo += below
    return found


def memory_bytes(pid: int) -> int:
    """What a process has in memory or swap that is in no file; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            rows = [line.split() for line in file if line.startswith(COUNTED)]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(row[1]) for row in rows)


# Inside


def be_init(job: Job, control: int, status: int) -> None:
    """Build the file system, start the program, collect whoever dies, end with the program."""
    if job["contained"]:
        build_root(job)
        drop_rights()
    call("parent", "prctl", PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if select.select([control], [], [], 0)[0]:
        return  # the one outside died before it could take this one along
    os.chdir(job["folder"])
    with open("program.py", "x", encoding="utf-8", errors="surrogatepass") as file:
        file.write(job["program"])
    program = os.fork()
    if program == 0:
        guarded(status, lambda: be_program(job))
    while True:
        pid, code, used = os.wait4(-1, 0)
        if pid == program:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    say(status, exit=os.waitstatus_to_exitcode(code), seconds=seconds)


def build_root(job: Job) -> None:
    """A file system of read-only copies of what the interpreter needs, and an empty /tmp."""
    call("mount namespace", "unshare", NEWNS)
    call("private mounts", "mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    # Opened while this is still the caller, who may enter folders that INSIDE may not.
    binary, library = job["binary"], job["library"]
    sources = {"/python/bin/python3": binary, f"/python/{os.path.basename(library)}": library}
    sources |= {path: path for path in (*SYSTEM, *DEVICES) if os.path.exists(path)}
    opened: dict[str, int | str] = {
        target: os.readlink(path) if os.path.islink(path) else os.open(path, os.O_PATH)
        for target, path in sources.items()
    }
    os.setresgid(INSIDE, INSIDE, INSIDE)
    os.setresuid(INSIDE, INSIDE, INSIDE)
    root = next(path for path in ("/tmp", "/mnt", "/dev") if os.path.isdir(path))
    mount_empty(root, "mode=755,size=1m")
    for target, source in opened.items():
        bind(source, root + target)
    os.mkdir(root + "/tmp")
    for path in hidden(root, opened):
        mount_empty(path, "mode=555,size=4k")
    attributes = struct.pack("=QQQQ", READ_ONLY_NO_SUID, 0, 0, 0)
    call("read-only mounts", "syscall", MOUNT_SETATTR, AT_FDCWD, os.fsencode(root), AT_RECURSIVE,
         attributes, len(attributes))  # fmt: skip
    mount_empty(root + "/tmp", f"mode=700,size={job['limits']['disk_bytes']},nr_inodes=4096")
    os.chdir(root)
    call("new root", "syscall", PIVOT_ROOT, b".", b".")
    call("old root", "umount2", b".", MNT_DETACH)


def bind(source: int | str, target: str) -> None:
    """Show an open file or folder at a path below the new root; a link is made again."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if isinstance(source, str):
        os.symlink(source, target)
        return
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    path = f"/proc/self/fd/{source}".encode()
    call(f"copy of {target}", "mount", path, os.fsencode(target), None, MS_BIND | MS_REC, None)


def mount_empty(path: str, options: str) -> None:
    arguments = (b"tmpfs", os.fsencode(path), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode())
    call(f"tmpfs at {path}", "mount", *arguments)


def hidden(root: str, opened: dict[str, int | str]) -> list[str]:
    """The folders of installed packages in the new tree."""
    tops = [root + target for target, source in opened.items() if not isinstance(source, str)]
    return [
        path for top in tops for name in PACKAGES for path in glob.glob(f"{top}/python3*/{name}")
    ]


def drop_rights() -> None:
    """No capability, now or ever, and nobody may look into this process."""
    for capability in range(64):
        if libc.prctl(CAPBSET_DROP, ctypes.c_long(capability), 0, 0, 0) < 0:
            break  # past the last one this kernel knows
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    call("capabilities", "syscall", CAPSET, header, none)
    call("dumpable", "prctl", DUMPABLE, 0, 0, 0, 0)


def be_program(job: Job) -> NoReturn:
    """Set the limits, then become the program."""
    limits = job["limits"]
    for name, value in (
        ("RLIMIT_AS", limits["memory_bytes"]), ("RLIMIT_FSIZE", limits["disk_bytes"]),
        ("RLIMIT_NOFILE", 64), ("RLIMIT_CORE", 0), ("RLIMIT_MEMLOCK", 0),
    ):  # fmt: skip
        resource.setrlimit(getattr(resource, name), (value, value))
    # A second between them: SIGXCPU says what happened, SIGKILL is for those who ignore it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))
    os.setsid()
    call("no new privileges", "prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    if job["contained"]:
        # Init counts; other namespaces do not. Elsewhere this would count all the user runs.
        count = limits["processes"] + 1
        resource.setrlimit(resource.RLIMIT_NPROC, (count, count))
        code = bytes.fromhex(job["filter"])
        pointer = ctypes.cast(ctypes.create_string_buffer(code, len(code)), ctypes.c_void_p)
        program = struct.pack("@HP", len(code) // 8, pointer.value)
        call("seccomp", "prctl", SECCOMP, 2, program, 0, 0)
    os.execve(job["argv"][0], job["argv"], job["environment"])


if __name__ == "__main__":
    guarded(int(sys.argv[2]), main)
