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
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from abyssal.checkpoint import files, fp8, integers, names, shards
from abyssal.checkpoint.shards import FLOATS, FP8, INDEX, INT8, SINGLE, Shards, some
from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError


def read(
    folder: str | Path,
    config: ModelConfig,
    shapes: Mapping[str, torch.Size],
    *,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Our tensors, by our names, in the precision they were saved in; FP8, INT8 and INT4
    become BF16.

    With `dtype` all but the gate biases, which the release keeps in float32, are cast to it.

    Raises:
        CheckpointError: a file is missing or broken, or tensors are missing, surplus or misshapen;
            one error names them all.
    """
    folder = Path(folder)
    opened = check(folder, config, shapes)
    wanted = {name: names.parts(name, shape, config) for name, shape in shapes.items()}
    tensors: dict[str, Tensor] = {}
    for name, pieces in wanted.items():
        kinds = [opened.dtype(piece.published) for piece in pieces]
        kind = dtype if dtype and not name.endswith("_bias") else reduce(torch.promote_types, kinds)
        tensors[name] = torch.empty(shapes[name], dtype=kind)
        for piece in pieces:
            tensors[name][piece.place].copy_(opened.tensor(piece.published))
    for copy, original in names.copies(config).items():
        if copy in opened and not _same_bits(opened.tensor(copy), opened.tensor(original)):
            raise CheckpointError(
                f"{folder}: {copy} differs from {original}; expected a copy, as in the release"
            )
    return tensors


def check(folder: str | Path, config: ModelConfig, shapes: Mapping[str, torch.Size]) -> Shards:
    """The tensors of a folder, not yet read, that fit our tensors of these shapes by our names.

    Raises:
        CheckpointError: a file is missing or broken, or tensors are missing, surplus or misshapen;
            one error names them all.
    """
    opened = shards.opened(Path(folder))
    wanted = {name: names.parts(name, shape, config) for name, shape in shapes.items()}
    _refuse_misfits(Path(folder), misfits(opened, wanted, names.copies(config)))
    return opened


class _Expected(NamedTuple):
    """What a header must say of a tensor."""

    shape: tuple[int, ...]
    dtypes: Collection[str]


class Misfit(NamedTuple):
    """A stored tensor that is not as config.json wants it."""

    kind: str  # missing, surplus, of another shape or type
    name: str
    text: str  # name, what it is, what was expected


def misfits(
    opened: Shards, parts: Mapping[str, Sequence[names.Part]], copies: Mapping[str, str]
) -> list[Misfit]:
    """All tensors missing, surplus, misshapen or of a foreign type, in this order."""
    stored = opened.stored
    plain = {part.published: part.shape for each in parts.values() for part in each}
    plain |= {copy: plain[copies[copy]] for copy in copies if copy in opened}
    expected: dict[str, _Expected] = {}
    for published, shape in plain.items():
        expected |= _as_stored(published, shape, opened)
    present = {name: expected[name] for name in expected if name in stored}
    missing = [Misfit("missing", name, name) for name in expected if name not in stored]
    surplus = [Misfit("surplus", name, name) for name in stored if name not in expected]
    shapes = {name: (stored[name].shape, present[name].shape) for name in present}
    misshapen = [
        Misfit("of another shape", name, f"{name} is {_times(is_)}, expected {_times(wanted)}")
        for name, (is_, wanted) in shapes.items()
        if is_ != wanted
    ]
    types = {name: stored[name].dtype for name in present}
    odd = [name for name in present if types[name] not in present[name].dtypes]
    foreign = [Misfit(_FOREIGN, name, f"{name} is {types[name]}") for name in odd]
    return missing + surplus + misshapen + foreign


_FOREIGN = f"of a type not among {', '.join(FLOATS)}, {FP8}, {INT8} (matrices only)"


def _refuse_misfits(folder: Path, found: Sequence[Misfit]) -> None:
    """Raise one error that names them all."""
    kinds: dict[str, list[str]] = {}
    for misfit in found:
        kinds.setdefault(misfit.kind, []).append(misfit.text)
    complaints = [f"{len(texts)} {kind}: {some(texts)}" for kind, texts in kinds.items()]
    if complaints:
        raise CheckpointError(
            f"{folder}: tensors do not fit config.json; {'; '.join(complaints)}. "
            "Check that the config and the shards belong together"
        )


def _as_stored(published: str, shape: tuple[int, ...], opened: Shards) -> dict[str, _Expected]:
    """The tensors that a published one is stored as, judged by what is there of it."""
    entry = opened.stored.get(published)
    if len(shape) == 2:
        if entry is None and published in opened:
            scales = integers.group_shape(shape, opened.group)
            return {
                published + integers.PACKED: _Expected(integers.packed_shape(shape), ("I32",)),
                published + integers.SCALE: _Expected(scales, FLOATS),
                published + integers.SHAPE: _Expected((2,), ("I64", "I32")),
            }
        if entry is not None and entry.dtype == INT8:
            scale = {published + integers.SCALE: _Expected((shape[0], 1), FLOATS)}
            return {published: _Expected(shape, (INT8,))} | scale
        if entry is not None and entry.dtype == FP8:
            scales = fp8.scale_shape(shape, opened.block)
            return {
                published: _Expected(shape, (FP8,)),
                published + names.SCALE: _Expected(scales, FLOATS),
            }
    return {published: _Expected(shape, FLOATS)}


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
_WRITTEN_DTYPES = set(FLOATS.values())


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
