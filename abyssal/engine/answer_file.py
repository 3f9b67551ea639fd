"""Answers in one .jsonl file, which an interrupted run leaves and the next one goes on with.

One line an answer, written in one piece, in the order of the questions. A line that a dying machine
left half-written is taken off again, and its question is answered anew. No torch.
"""

import fcntl
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from abyssal.engine.questions import Key, digest, key_of
from abyssal.errors import DataError

_OPENING = b'{"index": '  # of every line, so that half of one is known as ours


class AnswerFile:
    """The file, open and locked against other runs.

    Raises:
        DataError: it cannot be written, another run has it, or it holds something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.answered: dict[Key, bytes] = {}  # the digest of what was asked
        if self.path.exists() and not self.path.is_file():
            raise DataError(f"{path}: a folder or a device; choose a file for the answers")
        try:
            self._file = self.path.open("ab", buffering=0)  # a fault shows where it happens
        except OSError as problem:
            raise DataError(
                f"{path}: cannot be written ({problem.strerror}); choose another file"
            ) from None
        try:
            self._take_over()
        except DataError:
            self._file.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def append(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write some answers; the index is the first field of each.

        Raises:
            DataError: the disk is full, say.
        """
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        data = "".join(lines).encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as problem:
            raise DataError(
                f"{self.path}: cannot be written ({problem.strerror}); make room and run the same "
                "command again"
            ) from None

    def _take_over(self) -> None:
        """Lock the file, learn what it holds, and take off half a line at its end."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path}: another run is writing it; wait for it or choose another file"
            ) from None
        whole_bytes = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    self._note(line, number)
                    whole_bytes += len(line)
                elif line[: len(_OPENING)] != _OPENING[: len(line)]:
                    raise self._foreign(number)
        self._file.truncate(whole_bytes)

    def _note(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            raise self._foreign(number) from None
        if not isinstance(row, dict) or not isinstance(row.get("index"), int):
            raise self._foreign(number)
        if not isinstance(row.get("id"), str | int | None):
            raise self._foreign(number)
        asked = {name: row[name] for name in ("prompt", "messages") if name in row}
        self.answered[key_of(row["index"], row.get("id"))] = digest(asked)

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"{self.path}:{number}: not an answer of a run like this; remove the line, or choose "
            "another file"
        )
