"""Documents: text read from files, cleaned, without duplicates, and an account of what was lost.

A record that cannot be used never stops a run. It is counted in a `DropReport` under its reason,
with the place where it lies, so that a person can look.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import rensa  # type: ignore[import-untyped]

from abyssal.data.records import (
    MAX_RECORD_BYTES,
    ROW_SUFFIXES,
    WHOLE_SUFFIXES,
    find_files,
    is_whole,
    read_rows,
    read_whole,
)
from abyssal.errors import ConfigError

NUM_EXAMPLES = 3  # places remembered per reason
NEAR_DUPLICATE = 0.8  # Jaccard similarity of shingles from which two documents are one
MAX_CONTROL_SHARE = 0.01  # more control characters than this, and the "text" is some other format

_SEED = 42
_SHINGLE_TOKENS = 3
_NUM_PERM = 128  # MinHash slots; the similarity is estimated to within about 0.04
# With 32 bands of 4 slots, 92% of pairs of similarity 0.83 and up were found on TinyStories with
# words replaced at random; with the library's own choice of bands 36%, at the same speed.
_NUM_BANDS = 32
_MAX_MARKS = 30  # combining marks in a row: the limit of the stream-safe format, UAX #15

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE_SEQUENCE = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]")  # terminal colors and cursor moves
_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_MAYBE_MARKS = re.compile(
    f"[^\x00-\u02ff\\w\\s]{{{_MAX_MARKS + 1}}}"
)  # quick, where marks are rare
_BLANK_LINES = re.compile("\n{4,}")
# Scripts written without spaces count by the character, as do punctuation and symbols.
_TOKEN = re.compile(
    "[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    "|[^\\W\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+|[^\\w\\s]"
)


class Document(NamedTuple):
    """A text and where it is from."""

    text: str
    source: str  # file:line, or the file


@dataclass
class DropReport:
    """How many records were met, how many were dropped and why, with a few places for each."""

    total: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Records met and not dropped."""
        return self.total - sum(self.dropped.values())

    def drop(self, reason: str, where: str) -> None:
        """Count one record, already in `total`, as dropped."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        places = self.examples.setdefault(reason, [])
        if len(places) < NUM_EXAMPLES:
            places.append(where)

    def counted(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The same documents, each counted as met: for those that no reader has counted."""
        for document in documents:
            self.total += 1
            yield document

    def summary(self) -> str:
        """One line: what was kept, and each reason with its count and its first place."""
        reasons = sorted(self.dropped.items(), key=lambda item: -item[1])
        lost = [f"{count:,} {reason} ({self.examples[reason][0]})" for reason, count in reasons]
        return "; ".join([f"kept {self.kept:,} of {self.total:,}", *lost])

    def to_dict(self) -> dict[str, object]:
        """The report as JSON knows it."""
        return {
            "total": self.total,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "examples": {reason: list(places) for reason, places in self.examples.items()},
        }


def read_documents(
    paths: Iterable[str | Path] | str | Path,
    report: DropReport,
    field: str = "text",
    max_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[Document]:
    """Clean documents from .txt and .jsonl files, plain or packed (.gz, .zst), and folders of them.

    A .txt file is one document, as is the string under `field` in each row of a .jsonl file. Files
    of other types in a folder are counted and passed over.

    Raises:
        DataError: at once, if a path does not exist, cannot be read or is of a type not known.
    """
    found = find_files(paths, ROW_SUFFIXES + WHOLE_SUFFIXES)
    for path in found.unknown:
        report.total += 1
        report.drop("file type not known", str(path))
    return _read_documents(found.files, report, field, max_bytes)


def _read_documents(
    files: list[Path], report: DropReport, field: str, max_bytes: int
) -> Iterator[Document]:
    for path in files:
        for where, raw, fault in _read_texts(path, field, max_bytes):
            report.total += 1
            fault = fault or text_fault(raw)
            text = "" if fault else clean(raw)
            if text:
                yield Document(text, where)
            else:
                report.drop(fault or "empty", where)


def _read_texts(path: Path, field: str, max_bytes: int) -> Iterator[tuple[str, str, str]]:
    """(where, text, fault) of every record of one file."""
    if is_whole(path):
        where, data, fault = read_whole(path, max_bytes)
        try:
            yield where, data.decode(), fault
        except UnicodeDecodeError:
            yield where, "", "bad UTF-8"
        return
    for where, row, fault in read_rows(path, max_bytes):
        text = row.get(field)
        if fault:
            yield where, "", fault
        elif field not in row:
            yield where, "", f"no field {field!r}"
        elif isinstance(text, str):
            yield where, text, ""
        else:
            yield where, "", f"field {field!r} is not a string"


def text_fault(text: str) -> str:
    """Why no document can be made of this text, or nothing if one can."""
    if _SURROGATE.search(text):
        return "unpaired surrogate"
    if "\x00" in text:
        return "null character"
    if len(text) - len(_CONTROL.sub("", text)) > MAX_CONTROL_SHARE * len(text):
        return "control characters"
    return ""


def clean(text: str) -> str:
    """The same text in normal form NFC, with plain line breaks and no invisible residue.

    Terminal sequences and control characters but tab go, trailing spaces go, runs of blank lines
    shrink to two (as Python code has them), blank ends go. What joins or directs letters
    (zero-width joiners, direction marks) stays: emoji and Arabic need it. Cleaning twice changes
    nothing more.
    """
    text = _LINE_BREAK.sub("\n", _ESCAPE_SEQUENCE.sub("", text))
    text = _CONTROL.sub("", text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", _cut_marks(text))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n\n", text).strip("\n")


def _cut_marks(text: str) -> str:
    """The text with no more combining marks in a row than text has; sorting them is quadratic."""
    if not _MAYBE_MARKS.search(text):
        return text
    marks = _combining_marks()
    return re.sub(f"([{marks}]{{{_MAX_MARKS}}})[{marks}]+", r"\1", text)


@cache
def _combining_marks() -> str:
    return "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c))


def deduplicate(
    documents: Iterable[Document], report: DropReport, threshold: float = NEAR_DUPLICATE
) -> Iterator[Document]:
    """The documents without exact copies (by hash) and near copies (MinHash) of an earlier one.

    Near: the estimated Jaccard similarity of their sets of three consecutive words is at least
    `threshold`. `report` is the one their reader filled; places name the earlier document too.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold={threshold}, expected a similarity above 0 and at most 1")
    return _deduplicate(documents, report, threshold)


def _deduplicate(
    documents: Iterable[Document], report: DropReport, threshold: float
) -> Iterator[Document]:
    sources: list[str] = []  # of the documents that stayed; their numbers are the index's keys
    exact: dict[bytes, str] = {}
    near = rensa.RMinHashDeduplicator(
        threshold, _NUM_PERM, use_lsh=True, num_bands=_NUM_BANDS, seed=_SEED
    )
    for document in documents:
        digest = blake2b(document.text.encode(), digest_size=16).digest()
        if digest in exact:
            report.drop("exact duplicate", f"{document.source} (of {exact[digest]})")
            continue
        exact[digest] = document.source
        if shingles := _shingles(document.text):  # two empty sets would count as equal
            sketch = rensa.RMinHash(_NUM_PERM, _SEED)
            sketch.update(shingles)
            if twins := near.get_duplicates(sketch):
                twin = sources[min(map(int, twins))]
                report.drop("near duplicate", f"{document.source} (of {twin})")
                continue
            near.add(str(len(sources)), sketch)
        sources.append(document.source)
        yield document


def _shingles(text: str) -> list[str]:
    """Every three consecutive words, of a shorter text all words; case does not matter."""
    tokens = _TOKEN.findall(text.lower())
    if len(tokens) <= _SHINGLE_TOKENS:
        return [" ".join(tokens)] if tokens else []
    return [" ".join(three) for three in zip(tokens, tokens[1:], tokens[2:], strict=False)]
