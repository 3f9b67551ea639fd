"""The native kernels' shared library: every .cpp of a folder, compiled once for this CPU and kept.

Each source becomes an object named by the hash of all that decides its code: the source, the
headers it includes, flags, compiler and CPU. So editing one source compiles one. The objects become
one library, named by theirs. A file comes into the store whole, by renaming; one process compiles,
others wait for it.

Every function that a source offers is written ``extern "C" void ab_NAME(...)``, or int64_t; each
argument is an int64_t, a double or a pointer. These signatures are read, so calls can be checked.
"""

import fcntl
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".cpp", ".h")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=off",  # simd.h says where products and sums are rounded as one
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
)
INSTALL = (
    "install Xcode's command line tools and libomp, or gcc, and name it in CXX"
    if platform.system() == "Darwin"
    else "install g++ 11 or newer or clang (Debian: apt install g++), or name one in CXX"
)
_KEEP_S = 30 * 24 * 3600  # what nobody has loaded for so long leaves the cache
_TOLD_LINES = 3  # of what a compiler complains about
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_FUNCTION = re.compile(r"\b(void|int64_t)\s+ab_(\w+)\s*\(([^(){};]*)\)\s*\{")

logger = logging.getLogger(__name__)


class CannotBuildError(Exception):
    """There is no library; the message says why, and what would help."""


class Compiler(NamedTuple):
    """A C++ compiler that answers."""

    command: tuple[str, ...]
    version: str  # the first line of --version

    @property
    def is_clang(self) -> bool:
        return "clang" in self.version


class Signature(NamedTuple):
    """What a function takes and returns."""

    kinds: str  # a letter an argument: p a pointer, i an int64_t, d a double
    returns_int: bool
    source: str  # the file it is defined in


class Built(NamedTuple):
    """A library on disk."""

    path: Path
    signatures: Mapping[str, Signature]  # of all functions in the sources, by name without ab_
    failed: Mapping[str, str]  # source -> the compiler's complaint; their functions are missing
    seconds: float  # spent on compiling now; 0 where all of it was found


def compiler() -> Compiler:
    """The C++ compiler: $CXX, or the first of g++, clang++ and c++ that answers."""
    chosen = os.environ.get("CXX")
    for name in [chosen] if chosen else COMPILERS:
        command = tuple(shlex.split(name))
        if command and shutil.which(command[0]):
            answer = subprocess.run([*command, "--version"], capture_output=True, text=True)
            if answer.returncode == 0 and answer.stdout:
                return Compiler(command, answer.stdout.splitlines()[0])
    found = f"CXX={chosen} is no compiler that answers" if chosen else "no C++ compiler was found"
    raise CannotBuildError(f"{found}; {INSTALL}")


@cache
def cpu() -> Mapping[str, str]:
    """What tells one CPU from another: its model, and the instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {"model": platform.processor() or platform.machine(), "flags": ""}
    said = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    model = " ".join(said.get(key, "") for key in ("model name", "cpu family", "model", "CPU part"))
    return {"model": model, "flags": said.get("flags", said.get("Features", ""))}


def _signatures(texts: Mapping[str, bytes]) -> dict[str, Signature]:
    """The functions that sources offer, by name without ``ab_``."""
    found: dict[str, Signature] = {}
    for source in sorted(name for name in texts if name.endswith(".cpp")):
        text = _COMMENT.sub("", texts[source].decode())
        for returned, name, arguments in _FUNCTION.findall(text):
            assert name not in found, f"ab_{name} in {source} and in {found[name].source}"
            kinds = "".join(map(_kind, arguments.split(","))) if arguments.strip() else ""
            found[name] = Signature(kinds, returned == "int64_t", source)
    return found


def _kind(argument: str) -> str:
    """`const float* x` -> p, `int64_t rows` -> i, `double eps` -> d."""
    if "*" in argument:
        return "p"
    kind = {"int64_t": "i", "double": "d"}.get(argument.replace("const ", "").split()[0])
    assert kind, f"{argument.strip()}: an argument is an int64_t, a double or a pointer"
    return kind


def build(folder: Path, store: Path, tool: Compiler, flags: Sequence[str], openmp: str) -> Built:
    """The library of all .cpp files in a folder, found in the store or compiled into it.

    `flags` come after FLAGS. `openmp` is the runtime to link with, "" for the compiler's own. A
    source that does not compile is left out, and the result says so.

    Raises:
        CannotBuildError: nothing compiles or links, or the store cannot be written.
    """
    texts = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in SUFFIXES}
    command = (*tool.command, *FLAGS, *flags)
    salt = "\n".join((*command, tool.version, *cpu().values()))
    keys = {name: key_of(salt, *_closure(name, texts)) for name in texts if name.endswith(".cpp")}
    if not keys:
        raise CannotBuildError(f"{folder} has no .cpp files; install Abyssal again")
    link = [flag for flag in flags if flag.startswith("-fsanitize")] + [openmp or "-fopenmp"]
    signatures = _signatures(texts)
    began = time.monotonic()
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        failed = _failures(store, keys)
        path = _library_path(store, keys, failed, link)
        if path.is_file():
            touch(path)
            return Built(path, signatures, failed, 0.0)
        with _alone(store), tempfile.TemporaryDirectory(dir=store) as work:
            for name, text in texts.items():
                (Path(work) / name).write_bytes(text)  # what was hashed, whatever an editor does
            failed = _compile(Path(work), folder, keys, command)
            path = _library_path(store, keys, failed, link)
            objects = [str(store / f"{key}.o") for name, key in keys.items() if name not in failed]
            if not objects:
                raise CannotBuildError(next(iter(failed.values())))
            if not path.is_file():
                _run([*tool.command, "-shared", "-o", path.name, *objects, *link], Path(work))
                _publish(Path(work) / path.name, path)
            _forget_old(store)
    except OSError as error:
        raise CannotBuildError(f"{store}: {error}; name another folder in ABYSSAL_CACHE") from error
    return Built(path, signatures, failed, time.monotonic() - began)


def _closure(name: str, texts: Mapping[str, bytes]) -> list[bytes]:
    """The contents of a source and of the headers it includes, through others too."""
    seen, waiting = {}, [name]
    while waiting:
        file = waiting.pop()
        if file in texts and file not in seen:
            seen[file] = texts[file]
            waiting += _INCLUDE.findall(texts[file].decode())
    return [part for file in sorted(seen) for part in (file.encode(), seen[file])]


def key_of(*parts: str | bytes) -> str:
    """A short hash of texts, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:24]


def _library_path(
    store: Path, keys: Mapping[str, str], failed: Mapping[str, str], link: Sequence[str]
) -> Path:
    built = sorted(key for name, key in keys.items() if name not in failed)
    return store / f"{key_of(*built, '', *link)}.so"


def _failures(store: Path, keys: Mapping[str, str]) -> dict[str, str]:
    """Complaints of the compiler that are known already, by source."""
    files = {name: store / f"{key}.error" for name, key in keys.items()}
    return {name: file.read_text() for name, file in files.items() if file.is_file()}


def _compile(
    work: Path, folder: Path, keys: Mapping[str, str], command: Sequence[str]
) -> dict[str, str]:
    """Compile at once all that the store, the parent of `work`, lacks; complaints, by source."""
    store = work.parent
    failed = _failures(store, keys)
    objects = {name: store / f"{keys[name]}.o" for name in keys if name not in failed}
    missing = [name for name, file in objects.items() if not file.is_file()]
    for file in objects.values():
        touch(file)
    missing.sort(key=lambda name: (work / name).stat().st_size, reverse=True)
    if missing:
        logger.warning(
            "compiling native kernels for this CPU, once: %d of %d files", len(missing), len(keys)
        )
    # Complaints and debuggers shall name the folder, not the copy.
    command = [*command, f"-ffile-prefix-map={work}={folder}", "-c"]

    def compile_one(name: str) -> None:
        target = work / f"{keys[name]}.o"
        try:
            _run([*command, name, "-o", target.name], work)
        except CannotBuildError as error:
            failed[name] = f"{name}: {error}"
            if "error:" not in failed[name]:
                return  # killed for want of memory, say: to be tried again
            target = target.with_suffix(".error")
            target.write_text(failed[name])
        _publish(target, store / target.name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, missing))
    return failed


def touch(file: Path) -> None:
    """Note that a file is used, where the store may be written."""
    with suppress(OSError):
        os.utime(file)


def _run(command: Sequence[str], work: Path) -> None:
    """Run a compiler; what it complained about becomes the error."""
    environment = {**os.environ, "LC_ALL": "C", "LD_PRELOAD": ""}  # no sanitizer in the compiler
    ran = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if ran.returncode:
        lines = ran.stderr.splitlines()
        told = [line for line in lines if "error:" in line] or lines[-_TOLD_LINES:]
        raise CannotBuildError(
            "; ".join(told[:_TOLD_LINES]) or f"{command[0]} ended with code {ran.returncode}"
        )


def _publish(file: Path, place: Path) -> None:
    """Put a finished file in its place in one step."""
    with file.open("rb") as written:
        os.fsync(written.fileno())
    file.replace(place)


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """One process at a time; a lock that a process held is free when it ends, however it ends."""
    with (store / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_old(store: Path) -> None:
    """Remove what nobody has used for a month, and what interrupted builds left."""
    for path in store.iterdir():
        if time.time() - path.stat().st_mtime > _KEEP_S and path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
