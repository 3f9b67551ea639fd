"""A training state on disk: tensors, plain values, and a manifest of hashes, published in one step.

    OUT/trainer/step-00000200/    state.safetensors    state.json    manifest.json

A run killed at any moment finds its newest whole state again. Nothing is pickled.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from abyssal.checkpoint import files

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})")


class State(NamedTuple):
    """What a run continues from."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, object]  # as JSON knows them


def save(
    root: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, object], keep: int
) -> None:
    """Publish the state of `step` under `root`, then drop all but the newest `keep` states."""

    def fill(folder: Path) -> None:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()}, folder / "state.safetensors"
        )
        files.dump(folder / "state.json", values)

    files.publish_folder(root / f"step-{step:08d}", fill)
    for _, old in _states(root)[keep:]:
        shutil.rmtree(old)


def latest(root: Path) -> State | None:
    """The newest state whose files are whole; older ones stand in for a broken one, with a warning."""
    for step, folder in _states(root):
        broken = files.verify(folder)
        if not broken:
            tensors = load_file(folder / "state.safetensors")
            return State(step, tensors, files.read_json(folder / "state.json"))
        logger.warning(
            "%s: %s not as written; trying the state before it", folder, ", ".join(broken)
        )
    return None


def _states(root: Path) -> list[tuple[int, Path]]:
    """Steps and folders of all states, the newest first."""
    found = [(m, path) for path in root.glob("step-*") if (m := _NAME.fullmatch(path.name))]
    return sorted(((int(m[1]), path) for m, path in found), reverse=True)
