"""A training state on disk: tensors, plain values, and a manifest of hashes, published in one step.

    OUT/trainer/step-00000200/    state.safetensors    state.json    manifest.json

A run killed at any moment finds its newest whole state again. Nothing is pickled.
"""

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from abyssal.checkpoint import files
from abyssal.checkpoint.shard_file import NAMES, Entry, ShardFile
from abyssal.errors import CheckpointError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # a second state of one step ends in .1


class State(NamedTuple):
    """What a run continues from."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, object]  # as JSON knows them


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, object],
    keep: int,
    fetch: Callable[[str, Tensor], Tensor] = as_it_is,
) -> None:
    """Publish the state of `step` under `root`, and keep those of the `keep` - 1 steps before it.

    A second state of the same step stands beside the first until it is whole. States of later steps
    go: the run turned back from there. Each tensor is written as `fetch` gives it, which may have
    to bring it from elsewhere, and then let go.

    Raises:
        CheckpointError: the disk does not take it; what was saved before is untouched.
    """

    def fill(draft: Path) -> None:
        entries = {n: Entry(NAMES[t.dtype], tuple(t.shape)) for n, t in tensors.items()}
        with ShardFile(draft / "state.safetensors", entries) as file:
            for name, tensor in tensors.items():
                file.put(name, fetch(name, tensor).cpu())
        files.dump(draft / "state.json", values)

    folder = _free(root, step)
    try:
        files.publish_folder(folder, fill)
    except OSError as problem:
        raise CheckpointError(
            f"{folder}: cannot be written ({problem}); make room and run the same command again"
        ) from problem
    before = [path for at, _, path in _states(root) if at < step]
    for _, _, path in _states(root):
        if path not in (folder, *before[: keep - 1]):
            shutil.rmtree(path)


def latest(root: Path) -> State | None:
    """The newest state whose files are whole; an older one in place of a broken one, said aloud."""
    for step, _, folder in _states(root):
        broken = files.verify(folder)
        if not broken:
            tensors = load_file(folder / "state.safetensors")
            return State(step, tensors, files.read_json(folder / "state.json"))
        logger.warning(
            "%s: %s not as written; trying the state before it", folder, ", ".join(broken)
        )
    return None


def _free(root: Path, step: int) -> Path:
    """Where the next state of a step goes."""
    taken = [again for at, again, _ in _states(root) if at == step]
    return root / (f"step-{step:08d}" + (f".{taken[0] + 1}" if taken else ""))


def _states(root: Path) -> list[tuple[int, int, Path]]:
    """The step, the number among those of its step, and the folder of all states, newest first."""
    found = [(m, path) for path in root.glob("step-*") if (m := _NAME.fullmatch(path.name))]
    return sorted(((int(m[1]), int(m[2] or 0), path) for m, path in found), reverse=True)
