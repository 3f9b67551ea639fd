"""The shards of a model folder read as far as they can be, with every fault noted.

Nothing here ends at the first fault: whoever copies a large folder again wants to know of all that
is missing.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abyssal.checkpoint import files, shards
from abyssal.checkpoint.shard_file import Entry
from abyssal.checkpoint.shards import INDEX, SINGLE, Shards, Stored
from abyssal.errors import AbyssalError

_SHOWN = 20  # faults of one kind
_HEADER_BYTES = 100_000_000  # the library's own limit
_AGAIN = "copy it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong, and what to do."""

    what: str
    remedy: str


class Survey:
    """A folder looked at: facts about it by name, and its faults."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts: dict[str, object] = {"folder": folder}
        self.faults: list[Fault] = []
        self.unreadable: set[Path] = set()  # shards that are broken
        self.lost: set[str] = set()  # tensors of shards that are missing or unreadable

    def fault(self, what: str, remedy: str) -> None:
        """Note that something is wrong."""
        self.faults.append(Fault(what=what, remedy=remedy))

    def faults_of(self, kind: str, texts: list[str], remedy: str) -> None:
        """Note the first of many like it, and how many more there are."""
        for text in texts[:_SHOWN]:
            self.fault(f"{kind}: {text}", remedy)
        if len(texts) > _SHOWN:
            self.fault(f"{kind}: {len(texts) - _SHOWN:,} more", remedy)


def survey_shards(found: Survey, beside: str) -> Shards:
    """Whatever headers can be read; `beside` is a file of tensors that is not the model's."""
    folder = found.folder
    present = sorted(p.name for p in folder.glob("*.safetensors") if p.name != beside)
    index = _index(found, present)
    named: dict[str, set[str] | None] = dict.fromkeys(present)  # and what each should hold
    if index is not None:
        of_each: dict[str, set[str]] = {name: set() for name in sorted({*index.values()})}
        for tensor, name in index.items():
            of_each[name].add(tensor)
        named = {**of_each}
    stored: dict[str, Stored] = {}
    for name, listed in named.items():
        stored |= _held(found, folder / name, listed)
    if not named:
        found.fault("no weights", f"expected {INDEX} and its shards, or {SINGLE}")
    for name in present if index is not None else ():
        if name not in named:
            found.fault(f"{name} is of no use: the index does not name it", "remove it")
    sizes = [(folder / name).stat().st_size for name in named if (folder / name).is_file()]
    found.facts |= {"shards": len(named), "largest_shard_bytes": max(sizes, default=0)}
    try:
        return Shards(stored, shards.block_size(folder), shards.group_size(folder))
    except AbyssalError:  # noted with the config
        return Shards(stored, (128, 128))


def _held(found: Survey, path: Path, listed: set[str] | None) -> dict[str, Stored]:
    """The tensors of one shard, those that the index lists as far as there is one."""
    if not path.is_file():
        found.fault(f"{path.name} is missing, with {len(listed or ()):,} tensors", _AGAIN)
    inside = _header(found, path) if path.is_file() else None
    if inside is None:
        found.lost |= listed or set()
        return {}
    if listed is not None:
        again = f"copy {INDEX} and {path.name} again"
        lost = [f"{tensor} is not in {path.name}" for tensor in sorted(listed - inside.keys())]
        found.faults_of("index points to nothing", lost, again)
        extra = [f"{tensor} is in {path.name}" for tensor in sorted(inside.keys() - listed)]
        found.faults_of("not in the index", extra, again)
    kept = inside.keys() if listed is None else inside.keys() & listed
    return {t: Stored(path, inside[t].shape, inside[t].dtype) for t in inside if t in kept}


def _index(found: Survey, present: list[str]) -> dict[str, str] | None:
    """Tensor names and their files; None where there is no index and none is needed."""
    path = found.folder / INDEX
    if not path.exists():
        if present and present != [SINGLE]:
            found.fault(f"{INDEX} is missing, and {present[0]} is not {SINGLE}", _AGAIN)
        return None
    try:
        said = files.read_json(path).get("weight_map")
    except AbyssalError as problem:
        found.fault(str(problem), _AGAIN)
        return None
    if not isinstance(said, dict):
        found.fault(f"{INDEX} has no weight_map", _AGAIN)
        return None
    bad = [f"{name} in {file!r}" for name, file in said.items()
           if not isinstance(file, str) or Path(file).name != file or not file]  # fmt: skip
    found.faults_of(f"{INDEX} names no file of this folder", bad, _AGAIN)
    return {n: f for n, f in said.items() if isinstance(f, str) and f and Path(f).name == f}


def _header(found: Survey, path: Path) -> dict[str, Entry] | None:
    """The tensors of one shard, if its header can be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else math.inf
        text = file.read(int(length)) if length <= min(size - 8, _HEADER_BYTES) else b""
    try:
        said: dict[str, Any] = json.loads(text)
        said.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in said.values()]
        inside = {name: Entry(e["dtype"], tuple(e["shape"])) for name, e in said.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        found.unreadable.add(path)
        found.fault(f"{path.name} has no whole header ({size:,} bytes)", _AGAIN)
        return None
    whole = 8 + len(text) + max(ends, default=0)
    if size != whole:
        found.unreadable.add(path)
        state = "truncated" if size < whole else "too long"
        found.fault(f"{path.name} is {state}: {size:,} bytes, its header says {whole:,}", _AGAIN)
    return inside
