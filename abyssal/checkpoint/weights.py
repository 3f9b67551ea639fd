"""A model folder in the published format, read into our tensors and written from them.

    config.json    model-0000i-of-0000n.safetensors    model.safetensors.index.json
    generation_config.json    manifest.json (the size and SHA-256 of each of these)

A folder appears in one step. Into a folder that is there already, new shards go under names that
are free, then the index is replaced, and config.json last; until the index is replaced the old
weights load, from then on the new ones. No file that an index names is ever overwritten.
"""

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from abyssal.checkpoint import files, fp8, names, shards
from abyssal.checkpoint.shards import DTYPES, FP8, INDEX, SINGLE, Stored, some
from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError


def read(
    folder: str | Path,
    config: ModelConfig,
    shapes: Mapping[str, torch.Size],
    *,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Our tensors, by our names, in the precision they were saved in; FP8 becomes BF16.

    With `dtype` all but the gate biases, which the release keeps in float32, are cast to it.

    Raises:
        CheckpointError: a file is missing or broken, or tensors are missing, surplus or misshapen;
            one error names them all.
    """
    folder = Path(folder)
    stored = shards.headers(folder)
    block = shards.block_size(folder)
    wanted = {name: names.parts(name, shape, config) for name, shape in shapes.items()}
    _refuse_misfits(folder, wanted, stored, names.copies(config), block)
    opened = shards.Shards(stored, block)
    tensors: dict[str, Tensor] = {}
    for name, pieces in wanted.items():
        kinds = [DTYPES[stored[piece.published].dtype] for piece in pieces]
        kind = dtype if dtype and not name.endswith("_bias") else reduce(torch.promote_types, kinds)
        tensors[name] = torch.empty(shapes[name], dtype=kind)
        for piece in pieces:
            tensors[name][piece.place].copy_(opened.tensor(piece.published))
    for copy, original in names.copies(config).items():
        if copy in stored and not _same_bits(opened.tensor(copy), opened.tensor(original)):
            raise CheckpointError(
                f"{folder}: {copy} differs from {original}; expected a copy, as in the release"
            )
    return tensors


def _refuse_misfits(
    folder: Path,
    wanted: Mapping[str, Sequence[names.Part]],
    stored: Mapping[str, Stored],
    copies: Mapping[str, str],
    block: tuple[int, int],
) -> None:
    """Raise one error that names all tensors missing, surplus, misshapen or of a foreign type."""
    expected = {part.published: part.shape for parts in wanted.values() for part in parts}
    expected |= {copy: expected[copies[copy]] for copy in copies if copy in stored}
    for published, shape in list(expected.items()):
        if published in stored and stored[published].dtype == FP8 and len(shape) == 2:
            expected[published + names.SCALE] = fp8.scale_shape(shape, block)
    misshapen = [
        f"{name} is {_times(stored[name].shape)}, expected {_times(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    foreign = [
        f"{name} is {stored[name].dtype}"
        for name, shape in expected.items()
        if name in stored
        and (stored[name].dtype not in DTYPES or (stored[name].dtype == FP8 and len(shape) != 2))
    ]
    complaints = [
        f"{len(found)} {kind}: {some(found)}"
        for kind, found in (
            ("missing", [name for name in expected if name not in stored]),
            ("surplus", [name for name in stored if name not in expected]),
            ("of another shape", misshapen),
            (f"of a type not among {', '.join(DTYPES)} (matrices only)", foreign),
        )
        if found
    ]
    if complaints:
        raise CheckpointError(
            f"{folder}: tensors do not fit config.json; {'; '.join(complaints)}. "
            "Check that the config and the shards belong together"
        )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))  # where NaN equals NaN


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


# Writing


class _Piece(NamedTuple):
    """One published tensor, where to take it from, and its size."""

    published: str
    name: str
    place: tuple[int | slice, ...]
    num_bytes: int


def write(
    folder: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    max_shard_bytes: float = 5e9,
) -> None:
    """Write our tensors, by our names, as a model folder in the published format and names.

    Raises:
        CheckpointError: a tensor's type is not one we read, or a shard cannot be written.
    """
    folder = Path(folder)
    plan = _plan(config, tensors, max_shard_bytes)
    stem = _free_stem(folder)
    if not folder.exists():
        files.publish_folder(folder, lambda draft: _fill(draft, stem, config, tensors, plan))
        return
    draft = folder / ".writing"
    if draft.exists():  # of a run that was killed here
        shutil.rmtree(draft)
    draft.mkdir()
    try:
        _fill(draft, stem, config, tensors, plan)
        files.seal(draft)
        _move(draft, folder)
    finally:
        shutil.rmtree(draft)


def _plan(
    config: ModelConfig, tensors: Mapping[str, Tensor], max_shard_bytes: float
) -> list[list[_Piece]]:
    """Which published tensors go into which shard, in order and none split."""
    foreign = [
        f"{name} is {t.dtype}" for name, t in tensors.items() if t.dtype not in _WRITTEN_DTYPES
    ]
    if foreign:
        raise CheckpointError(
            f"{some(foreign)}; expected float32, float16 or bfloat16: cast the model before saving"
        )
    plan: list[list[_Piece]] = [[]]
    room = max_shard_bytes
    for piece in _pieces(config, tensors):
        if plan[-1] and piece.num_bytes > room:
            plan.append([])
            room = max_shard_bytes
        plan[-1].append(piece)
        room -= piece.num_bytes
    return plan


def _pieces(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Iterator[_Piece]:
    found: dict[str, _Piece] = {}
    for name, tensor in tensors.items():
        for published, place, shape in names.parts(name, tensor.shape, config):
            num_bytes = math.prod(shape) * tensor.element_size()
            found[published] = _Piece(published, name, place, num_bytes)
    yield from found.values()
    for copy, original in names.copies(config).items():
        yield found[original]._replace(published=copy)


def _fill(
    draft: Path,
    stem: str,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    plan: Sequence[Sequence[_Piece]],
) -> None:
    """Write every file of a model folder but the manifest into an empty one."""
    weight_map: dict[str, str] = {}
    for number, pieces in enumerate(plan, 1):
        file = f"{stem}-{number:05d}-of-{len(plan):05d}.safetensors"
        # A copy each: the format holds whole, unshared tensors.
        shard = {p.published: tensors[p.name][p.place].detach().cpu().clone(
            memory_format=torch.contiguous_format) for p in pieces}  # fmt: skip
        try:
            save_file(shard, draft / file, metadata={"format": "pt"})
        except SafetensorError as problem:
            raise CheckpointError(
                f"{draft / file}: cannot be written ({problem}); is the disk full?"
            ) from None
        weight_map |= dict.fromkeys(shard, file)
    total = sum(piece.num_bytes for pieces in plan for piece in pieces)
    files.dump(draft / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    files.dump(draft / "generation_config.json", ids)
    dtype = str(_prevailing_dtype(tensors)).removeprefix("torch.")
    files.dump(draft / "config.json", config.to_dict() | {"dtype": dtype, "torch_dtype": dtype})


def _move(draft: Path, folder: Path) -> None:
    """Move a checkpoint into a folder in use: shards, index, the rest, and config.json last."""
    new = sorted(path.name for path in draft.glob("*.safetensors"))
    for name in (*new, INDEX, "generation_config.json", "manifest.json", "config.json"):
        os.replace(draft / name, folder / name)
        files.sync(folder)  # in this order on the disk as well
    for path in folder.iterdir():
        if path.name == SINGLE or (_SHARD.fullmatch(path.name) and path.name not in new):
            path.unlink()


_SHARD = re.compile(r"model(\.\d+)?-\d{5}-of-\d{5}\.safetensors")
_WRITTEN_DTYPES = set(DTYPES.values())


def _free_stem(folder: Path) -> str:
    """What shard names begin with: ``model``, or ``model.1`` and so on if older ones have that."""
    for number in count():
        stem = f"model.{number}" if number else "model"
        if not any(folder.glob(f"{stem}-*.safetensors")):
            return stem
    raise AssertionError("count() does not end")


def _prevailing_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    numbers = Counter[torch.dtype]()
    for tensor in tensors.values():
        numbers[tensor.dtype] += tensor.numel()
    return numbers.most_common(1)[0][0]
