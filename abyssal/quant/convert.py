"""A model folder in another format: one tensor at a time, whole or not there.

Every matrix that the format wants is read, quantized and written in the order of the source's
shards; no more than the shard being read and the one being written are in memory. The tokenizer and
whatever else describes the model come along, what tells of a training run does not. The new folder
appears in one step, after `approve` has seen it.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from abyssal.checkpoint import files, integers, shards, weights
from abyssal.checkpoint.shards import FLOATS, INDEX, Shards
from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant import formats
from abyssal.quant.formats import Format

_WRITTEN_ANEW = {INDEX, files.MANIFEST, "config.json"}
_OF_A_RUN = {"recipe.json", "metrics.jsonl", "report.html", "done.json"}  # that trained the source
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """A folder and what became of its weights."""

    folder: Path
    format: Format
    matrices: int  # in the new format
    kept: int  # tensors as they were
    short_groups: int  # matrices with a last group of fewer inputs, which only we read
    bytes_before: int
    bytes_after: int


class _Piece(NamedTuple):
    """One published tensor, what it becomes, and its size then."""

    published: str
    kind: Format | None
    num_bytes: int


def convert(
    source: str | Path,
    out: str | Path,
    to: Format,
    *,
    approve: Callable[[Path], None] = lambda draft: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    max_shard_bytes: float = 5e9,
) -> Converted:
    """Write the model of one folder into a new one, its matrices in fewer bits.

    `approve` gets the folder before it has its name, and keeps it from appearing by raising;
    `progress` hears after each tensor how many bytes are done, and of how many.

    Raises:
        CheckpointError: the source is broken or quantized already, `out` exists, a weight is not
            finite, or the disk does not take it.
    """
    source, out = Path(source), Path(out)
    _refuse_existing(out)
    opened = _opened(source)
    plan = _plan(opened, to, max_shard_bytes)

    def fill(draft: Path) -> None:
        _write(draft, opened, plan, progress)
        _describe(draft, source, to)
        approve(draft)

    try:
        files.publish_folder(out, fill, replace=False)
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(
            f"{out}: cannot be written ({problem}); make room and run the same command again"
        ) from None
    pieces = [piece for shard in plan for piece in shard]
    return Converted(
        folder=out,
        format=to,
        matrices=sum(piece.kind is not None for piece in pieces),
        kept=sum(piece.kind is None for piece in pieces),
        short_groups=_short_groups(opened, pieces),
        bytes_before=sum(_bytes_of(opened, piece.published) for piece in pieces),
        bytes_after=sum(piece.num_bytes for piece in pieces),
    )


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise CheckpointError(f"{out} exists already; name another folder, or remove that one")


def _opened(source: Path) -> Shards:
    """The tensors of a source that fits its config and is not quantized."""
    config = ModelConfig.load(source)
    method = shards.quantization_of(source)
    if method is not None:
        raise CheckpointError(
            f"{source} is quantized already (quant_method {method}); "
            "convert the folder it was made from"
        )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DeepSeekV3(config).state_dict().items()}
    opened = weights.check(source, config, shapes)
    coded = [name for name, entry in opened.stored.items() if entry.dtype not in FLOATS]
    if coded:
        raise CheckpointError(
            f"{source} holds quantized weights ({shards.some(coded)}); "
            "convert the folder it was made from"
        )
    return opened


def _plan(opened: Shards, to: Format, max_shard_bytes: float) -> list[list[_Piece]]:
    """Which tensors go into which shard, in the order of the source's shards and none split."""
    plan: list[list[_Piece]] = [[]]
    room = max_shard_bytes
    for published, entry in opened.stored.items():
        kind = formats.kind_of(published, to)
        plain = _bytes_of(opened, published)
        size = plain if kind is None else formats.num_bytes(entry.shape, kind)
        if plan[-1] and size > room:
            plan.append([])
            room = max_shard_bytes
        plan[-1].append(_Piece(published, kind, size))
        room -= size
    return plan


def _bytes_of(opened: Shards, published: str) -> int:
    entry = opened.stored[published]
    return math.prod(entry.shape) * FLOATS[entry.dtype].itemsize


def _short_groups(opened: Shards, pieces: list[_Piece]) -> int:
    shapes = [opened.stored[piece.published].shape for piece in pieces if piece.kind == "int4"]
    return sum(shape[1] % integers.GROUP != 0 for shape in shapes)


def _write(
    draft: Path, opened: Shards, plan: list[list[_Piece]], progress: Callable[[int, int], None]
) -> None:
    """The shards and their index."""
    total, done = sum(piece.num_bytes for shard in plan for piece in shard), 0
    weight_map: dict[str, str] = {}
    for number, pieces in enumerate(plan, 1):
        file = f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for piece in pieces:
            tensors |= _encoded(opened, piece)
            done += piece.num_bytes
            progress(done, total)
        save_file(tensors, draft / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    files.dump(draft / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _encoded(opened: Shards, piece: _Piece) -> dict[str, torch.Tensor]:
    if opened.stored[piece.published].path not in opened.open:
        opened.close()  # the shard before: nothing more is read from it
    tensor = opened.tensor(piece.published)
    if piece.kind is None:
        return {piece.published: tensor}
    if not tensor.isfinite().all():
        raise CheckpointError(
            f"{opened.stored[piece.published].path}: {piece.published} holds numbers that are not "
            "finite; nothing can be said in fewer bits of these"
        )
    return formats.encode(piece.published, tensor, piece.kind)


def _describe(draft: Path, source: Path, to: Format) -> None:
    """config.json, and the files that come along."""
    for path in _companions(source):
        shutil.copyfile(path, draft / path.name)
    config = files.read_json(source / "config.json")
    files.dump(
        draft / "config.json", config | {"quantization_config": formats.quantization_config(to)}
    )


def _companions(source: Path) -> Iterator[Path]:
    """Files beside the weights that describe the model: tokenizer, generation config, license."""
    for path in sorted(source.iterdir()):
        left = path.name in _WRITTEN_ANEW | _OF_A_RUN or path.suffix in _WEIGHTS
        if path.is_file() and not left and not path.name.startswith("."):
            yield path
