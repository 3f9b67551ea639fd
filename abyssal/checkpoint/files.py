"""Files that are whole or not there: hashes, syncing, folders that appear in one step."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from abyssal.errors import CheckpointError

MANIFEST = "manifest.json"


def publish_folder(folder: Path, fill: Callable[[Path], None], *, replace: bool = True) -> None:
    """Let `fill` write into a hidden folder beside; hash, sync and rename it to `folder`.

    Without `replace`, a folder that is there by then stays, and OSError is raised.
    """
    draft = folder.with_name(f".{folder.name}.writing")
    if draft.exists():  # of a run that was killed here
        shutil.rmtree(draft)
    draft.mkdir(parents=True)
    try:
        fill(draft)
        seal(draft)
        if replace and folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
        sync(folder.parent)
    finally:
        if draft.exists():
            shutil.rmtree(draft)


def seal(folder: Path) -> None:
    """Write the manifest of every file in a folder and see all of them to the disk."""
    manifest = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
    dump(folder / MANIFEST, {"files": manifest})
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def verify(folder: Path) -> list[str]:
    """Names of files that are not as the manifest says; the manifest's own if it is broken."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [n for n, written in files.items() if differs(folder / n, written)]
    except (OSError, ValueError, KeyError, AttributeError):
        return [MANIFEST]


def differs(path: Path, written: Mapping[str, object]) -> bool:
    """Whether a file is not there, or of another size or SHA-256 than `written` says."""
    return not path.is_file() or fingerprint(path) != written


def fingerprint(path: Path) -> dict[str, int | str]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def dump(path: Path, content: Mapping[str, object]) -> None:
    """Write one JSON object."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def publish_json(path: Path, content: Mapping[str, object]) -> None:
    """Write one JSON object in a folder in use: the old one is there until the new one is whole."""
    draft = path.with_name(f".{path.name}.writing")
    dump(draft, content)
    sync(draft)
    os.replace(draft, path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, object]:
    """What a JSON file holds, if it is one object.

    Raises:
        CheckpointError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem}); copy it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected one JSON object, found {type(found).__name__}")
    return found


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
