"""The questions that ship with the package, one gzip JSON-lines file each; never trained on.

``corpus/eval/manifest.json`` has the record count and SHA-256 of every file, ``SOURCES.md`` beside
it where each is from, its license, and what is missing of it. No torch.
"""

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from abyssal.errors import DataError

FOLDER = Path(__file__).parent.parent / "corpus" / "eval"

Row = dict[str, Any]  # as published


@cache
def rows(name: str) -> tuple[Row, ...]:
    """The records of a file, in order.

    Raises:
        DataError: the file is missing or its content has changed.
    """
    path = FOLDER / f"{name}.jsonl.gz"
    expected = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))[name]["sha256"]
    if not path.is_file():
        raise DataError(f"{path} is missing; install abyssal again")
    packed = path.read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != expected:
        raise DataError(
            f"{path} has SHA-256 {digest[:12]}..., expected {expected[:12]}...; install abyssal "
            "again"
        )
    return tuple(json.loads(line) for line in gzip.decompress(packed).split(b"\n") if line)
