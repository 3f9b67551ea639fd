"""A folder on its way that a killed run goes on with.

Files are made one after the other in a hidden folder beside the final one. What is being made, of
what, stands in a plan there, and of every file that is whole its size and SHA-256. A later run with
the same purpose takes over the files that still are as the plan says; with another purpose it is
refused. The folder gets its name in one step, after all files have been compared once more.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from abyssal.checkpoint import files
from abyssal.errors import CheckpointError

PLAN = ".plan.json"
_LOCK = ".lock"


class Draft:
    """The hidden folder of `folder`, held by one process at a time: use it in a `with` block.

    `purpose` says what is being made: plain JSON, the same for the same work. Files of the names in
    `keep` are not the plan's matter: who makes them knows how far they are.

    Raises:
        CheckpointError: it holds other work, another process writes it, or a file cannot be read.
    """

    def __init__(self, folder: Path, purpose: Mapping[str, object], keep: Collection[str] = ()):
        self.folder = folder
        self.path = folder.with_name(f".{folder.name}.writing")
        self.purpose, self.keep = dict(purpose), keep
        self.whole: dict[str, dict[str, int | str]] = {}  # files as the plan knows them

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise CheckpointError(
                f"{self.folder} is being written by another process; wait for it to end"
            ) from None
        try:
            self._take_over()
        except CheckpointError:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def has(self, name: str) -> bool:
        """Whether a file of an earlier run is there and still as it was written."""
        written = self.whole.get(name)
        if written is not None and not files.differs(self.path / name, written):
            return True
        self.whole.pop(name, None)
        return False

    def add(self, name: str) -> None:
        """Note that a file is whole: it need not be made again."""
        files.sync(self.path / name)
        self.whole[name] = files.fingerprint(self.path / name)
        self._write_plan()

    def discard(self) -> None:
        """Remove what was made so far."""
        shutil.rmtree(self.path)

    def publish(self, progress: Callable[[str], None] = lambda name: None) -> None:
        """Compare all files with the plan, write the manifest, and give the folder its name.

        Raises:
            CheckpointError: the disk does not hold what was written.
            OSError: something came to be under that name.
        """
        for name, written in self.whole.items():
            progress(name)
            if files.differs(self.path / name, written):
                del self.whole[name]
                self._write_plan()
                raise CheckpointError(
                    f"{self.path / name} is not as it was written: the disk or the memory loses "
                    "data; run the same command again"
                )
        files.dump(self.path / files.MANIFEST, {"files": self.whole})
        files.sync(self.path / files.MANIFEST)
        (self.path / _LOCK).unlink()
        files.sync(self.path)
        os.rename(self.path, self.folder)
        (self.folder / PLAN).unlink()
        files.sync(self.folder.parent)

    def _take_over(self) -> None:
        """What the plan knows stays, all else there goes; without a plan nothing can be trusted."""
        if (self.path / PLAN).exists():
            self._read_plan()
        for path in self.path.iterdir():
            if path.name not in (PLAN, _LOCK, *self.whole, *self.keep):
                path.unlink()
        self._write_plan()

    def _read_plan(self) -> None:
        plan = files.read_json(self.path / PLAN)
        if plan.get("purpose") != self.purpose:
            raise CheckpointError(
                f"{self.path} holds unfinished work of another kind: {_described(plan)}. "
                "Run that command again to finish it, or remove that folder to begin anew"
            )
        known = plan.get("files")
        self.whole = known if isinstance(known, dict) else {}

    def _write_plan(self) -> None:
        files.publish_json(self.path / PLAN, {"purpose": self.purpose, "files": self.whole})


def _described(plan: Mapping[str, object]) -> str:
    purpose, known = plan.get("purpose"), plan.get("files")
    count = len(known) if isinstance(known, dict) else 0
    if not isinstance(purpose, dict):
        return f"{count} files"
    plain = {name: said for name, said in purpose.items() if isinstance(said, str | int)}
    return ", ".join(f"{name} {said}" for name, said in plain.items()) + f", {count} files written"
