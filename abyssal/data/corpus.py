"""The text that ships with Abyssal: stories, and material for chatting about them.

Every ``*.jsonl.gz`` file is gzip JSON-lines, UTF-8, one object a line. ``manifest.json`` has the
record count, license and SHA-256 of each; ``SOURCES.md`` says where it is from and what we changed.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from abyssal.errors import DataError

FOLDER = Path(__file__).parent.parent / "corpus"


class Entry(NamedTuple):
    """One file of the corpus, as the manifest promises it."""

    file: str
    records: int
    license: str
    sha256: str


def manifest() -> dict[str, Entry]:
    """Every file by name."""
    rows = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return {name: Entry(**row) for name, row in rows.items()}


def names() -> list[str]:
    """What there is: "tinystories_train", "storybooks", ..."""
    return list(manifest())


def path(name: str) -> Path:
    """The file of that name, ready for ``read_documents`` or ``read_conversations``.

    Raises:
        DataError: there is no such name.
    """
    entries = manifest()
    if name not in entries:
        raise DataError(f"no corpus file is named {name!r}; there are {', '.join(entries)}")
    return FOLDER / entries[name].file


def rows(name: str) -> Iterator[dict[str, object]]:
    """The records of a file, in order, with every field they came with."""
    with gzip.open(path(name), "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def texts(name: str) -> list[str]:
    """The ``text`` field of every record.

    Raises:
        DataError: the file holds conversations, not text.
    """
    found = [row.get("text") for row in rows(name)]
    if not all(isinstance(text, str) for text in found):
        raise DataError(f"{name} holds conversations, not text; read it with read_conversations")
    return [str(text) for text in found]


def stories(split: Literal["train", "valid"] = "train") -> list[str]:
    """The TinyStories of a split. Train on one, measure on the other: they share no story."""
    return texts(f"tinystories_{split}")


def check(name: str) -> None:
    """Nothing, if the file is what the manifest says.

    Raises:
        DataError: the file is missing or its content has changed.
    """
    file = path(name)
    if not file.is_file():
        raise DataError(f"{file} is missing; install abyssal again")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = manifest()[name].sha256
    if digest != expected:
        raise DataError(
            f"{file} has SHA-256 {digest[:12]}..., expected {expected[:12]}...; "
            f"install abyssal again"
        )
