"""Files of text, read piece by piece: lines, JSON rows and whole files, each with its location.

Nothing here holds more than one record and one buffer, however large the file. A record that cannot
be used is still yielded, with its fault named, so that whoever reads can count it and go on:

    .jsonl .txt, each also as .gz or .zst        a .jsonl row is a record, a .txt file is one record
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from abyssal.errors import DataError

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
WHOLE_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")
MAX_RECORD_BYTES = 64 << 20  # a longer line or .txt file is dropped, not held

_READ_BYTES = 1 << 16
# A zstd block of 4 bytes may unfold to 128 KiB, so 512 bytes of file are at most 16 MiB of text.
_ZSTD_READ_BYTES = 512
_BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """One record as bytes; where `fault` is not empty, the record is lost and `data` is empty."""

    where: str  # file:line, or the file
    data: bytes
    fault: str = ""


class Row(NamedTuple):
    """One JSON object; where `fault` is not empty, the row is lost and `value` is empty."""

    where: str  # file:line
    value: dict[str, object]
    fault: str = ""


class Found(NamedTuple):
    """The files below some paths, and those passed over because their type is not known."""

    files: list[Path]
    unknown: list[Path]


def find_files(paths: Iterable[str | Path] | str | Path, suffixes: tuple[str, ...]) -> Found:
    """All files with these suffixes among `paths` and, sorted by name, in folders among them.

    Raises:
        DataError: a path does not exist, cannot be read or is of another type, or a folder holds
            no such file.
    """
    found = Found([], [])
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path)
        if path.is_dir():
            _find_in_folder(path, suffixes, found)
        elif not path.exists():
            raise DataError(f"{path} does not exist; give a file or a folder of text")
        elif not path.name.lower().endswith(suffixes):
            raise DataError(
                f"{path} is of a type that is not known; expected a folder or {_listed(suffixes)}"
            )
        else:
            found.files.append(path)
    for path in found.files:
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} may not be read by this user; change its permissions")
    if not found.files:
        raise DataError(f"no files to read; give at least one folder or {_listed(suffixes)}")
    return found


def _find_in_folder(folder: Path, suffixes: tuple[str, ...], found: Found) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    known = [path for path in files if path.name.lower().endswith(suffixes)]
    if not known:
        raise DataError(
            f"{folder} holds {len(files)} files and none is a text to read; "
            f"expected {_listed(suffixes)}"
        )
    found.files.extend(known)
    found.unknown.extend(path for path in files if not path.name.lower().endswith(suffixes))


def _listed(suffixes: tuple[str, ...]) -> str:
    return "one of " + ", ".join(suffixes)


def is_whole(path: Path) -> bool:
    """Whether the file is one record (.txt), not one per line."""
    return path.name.lower().endswith(WHOLE_SUFFIXES)


def read_rows(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Row]:
    """Every line of a .jsonl file as a JSON object, with the fault of those that are none."""
    for where, data, fault in read_lines(path, max_bytes):
        yield Row(where, {}, fault) if fault else _parse(where, data)


def _parse(where: str, data: bytes) -> Row:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Row(where, {}, "bad UTF-8")
    if not text.strip():
        return Row(where, {}, "blank line")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: brackets nested by the thousand
        return Row(where, {}, "bad JSON")
    if not isinstance(value, dict):
        return Row(where, {}, "not a JSON object")
    return Row(where, value)


def read_whole(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> Record:
    """A whole file as one record; a damaged one is lost as a whole."""
    held, size = [], 0
    try:
        for chunk in _chunks(path):
            size += len(chunk)
            if size > max_bytes:
                return Record(str(path), b"", _too_long(max_bytes))
            held.append(chunk)
    except EOFError:
        return Record(str(path), b"", "truncated archive")
    except (OSError, zlib.error, zstandard.ZstdError):
        return Record(str(path), b"", "damaged file")
    return Record(str(path), b"".join(held).removeprefix(_BOM))


def read_lines(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Record]:
    """Every line of a file without its line break; lines past a damage are lost as one record."""
    number, size = 1, 0
    held: list[bytes] = []  # the line so far, empty once it is too long
    fault = ""
    try:
        for chunk in _chunks(path):
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                held.append(end)
                yield _line(path, number, held, size + len(end), max_bytes)
                number, size, held = number + 1, 0, []
            size += len(rest)
            if size <= max_bytes:
                held.append(rest)
            else:
                held.clear()
    except EOFError:
        fault = "truncated archive"
    except (OSError, zlib.error, zstandard.ZstdError):
        fault = "damaged file"
    if fault:
        yield Record(f"{path}:{number}", b"", fault)
    elif size:
        yield _line(path, number, held, size, max_bytes)


def _line(path: Path, number: int, held: list[bytes], size: int, max_bytes: int) -> Record:
    where = f"{path}:{number}"
    if size > max_bytes:
        return Record(where, b"", _too_long(max_bytes))
    data = b"".join(held)
    return Record(where, data.removeprefix(_BOM) if number == 1 else data)


def _too_long(max_bytes: int) -> str:
    return f"longer than {max_bytes:,} bytes"


def _chunks(path: Path) -> Iterator[bytes]:
    """The unpacked bytes in pieces of bounded size; EOFError where an archive stops early."""
    if path.suffix.lower() == ".zst":
        yield from _zstd_chunks(path)
    elif path.suffix.lower() == ".gz":
        with gzip.GzipFile(path) as archive:
            # read1, not read: a read that meets the damage would take good bytes down with it.
            while chunk := archive.read1(_READ_BYTES):
                yield chunk
    else:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """The frames of a .zst file, one after another.

    The library's own stream reader ends without a word in the middle of a frame; the object below
    knows whether its frame is complete.
    """
    frame = zstandard.ZstdDecompressor().decompressobj()
    is_begun = False
    with path.open("rb") as file:
        while packed := file.read(_ZSTD_READ_BYTES):
            while packed:
                yield frame.decompress(packed)
                is_begun, packed = True, b""
                if frame.eof:
                    packed = frame.unused_data
                    frame, is_begun = zstandard.ZstdDecompressor().decompressobj(), False
    if is_begun:
        raise EOFError(f"{path} ends inside a zstd frame")
