"""What an evaluation leaves behind, and goes on with after a stop.

    OUT/run.json          which model it was, and the settings that scores depend on
    OUT/TASK.jsonl        one line a sample, in a fixed order; these lines are the state
    OUT/results.json      scores, made of the lines alone

No torch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abyssal.checkpoint.files import dump
from abyssal.engine.answer_file import AnswerFile
from abyssal.engine.questions import digest, key_of
from abyssal.errors import DataError
from abyssal.evals.task import Item

FORMAT = 1  # of these files: raised when a line changes its meaning
RUN, RESULTS = "run.json", "results.json"
_EDGE_BYTES = 2**16  # read at each end of a weight file to tell it from another

Row = dict[str, Any]


def identity(folder: str | Path) -> str:
    """What tells one model from another: a hash of config, tokenizer and ends of weights.

    Weights are not read whole: those of a large model take longer than an evaluation.
    """
    folder, mark = Path(folder), hashlib.sha256()
    names = ["config.json", "tokenizer.json"]
    paths = [*(folder / name for name in names), *sorted(folder.glob("*.safetensors"))]
    for path in paths:
        if not path.is_file():
            continue
        size = path.stat().st_size
        mark.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            mark.update(file.read(_EDGE_BYTES))
            file.seek(max(size - _EDGE_BYTES, 0))
            mark.update(file.read())
    return mark.hexdigest()


def claim(out: str | Path, run: Mapping[str, object], what: str = "scores") -> Path:
    """The folder OUT, new or of the same run before it was stopped; `what` it is to hold.

    Raises:
        DataError: it holds those of another model or other settings, or cannot be written.
    """
    out = Path(out)
    wanted = {"format": FORMAT, **run}
    path = out / RUN
    try:
        if path.is_file():
            _check_same(out, json.loads(path.read_bytes()), wanted, what)
        elif out.exists() and (not out.is_dir() or any(out.glob("*.jsonl"))):
            raise DataError(f"{out} is no folder of {what}; choose another with --out")
        else:
            out.mkdir(parents=True, exist_ok=True)
            dump(path, wanted)
    except OSError as problem:
        raise DataError(f"{out}: {problem.strerror}; choose another folder with --out") from None
    except ValueError:
        raise DataError(f"{path} is broken; delete {out}, or choose another with --out") from None
    return out


def _check_same(out: Path, found: object, wanted: Mapping[str, object], what: str) -> None:
    before = found if isinstance(found, dict) else {}
    changed = [name for name in wanted if before.get(name) != wanted[name]]
    if changed:
        name = changed[0]
        raise DataError(
            f"{out} holds {what} with {name}={_shown(before.get(name))}, not "
            f"{_shown(wanted[name])}; choose another folder with --out, or delete that one"
        )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


class Records:
    """The lines of one task, open and locked against other runs."""

    def __init__(self, out: Path, name: str):
        self.path = out / f"{name.replace(':', '-')}.jsonl"
        self._file = AnswerFile(self.path)

    def done(self, items: list[Item]) -> set[int]:
        """Which of the items, by place, are answered already.

        Raises:
            DataError: a line answers something else.
        """
        found = set()
        for i, item in enumerate(items):
            known = self._file.answered.get(key_of(i, item.id))
            if known is None:
                continue
            if known != digest({"prompt": item.text}):
                raise DataError(
                    f"{self.path}: its line {item.id!r} answers another question; delete the file"
                )
            found.add(i)
        return found

    def append(self, rows: list[Row]) -> None:
        """Write lines, each begun by `head`."""
        self._file.append(rows)

    def rows(self, count: int) -> list[Row]:
        """All lines of the first `count` items, in their order."""
        lines = self.path.read_bytes().splitlines()
        rows = [row for row in map(json.loads, lines) if row["index"] < count]
        return sorted(rows, key=lambda row: int(row["index"]))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def head(index: int, item: Item) -> Row:
    """How a line begins: whose it is."""
    domain = {"domain": item.domain} if item.domain else {}
    return {"index": index, "id": item.id, **domain, "prompt": item.text}
