"""What becomes of each tensor in a conversion, and into which shard it goes."""

from pathlib import Path
from typing import NamedTuple

from abyssal.checkpoint import integers
from abyssal.checkpoint.shard_file import Entry
from abyssal.checkpoint.shards import Shards
from abyssal.errors import CheckpointError
from abyssal.quant import formats
from abyssal.quant.formats import PLAIN, Format
from abyssal.quant.round_trip import Origin

SHARD_BYTES = 5e9


class Piece(NamedTuple):
    """One published tensor and what it becomes."""

    published: str
    parts: tuple[str, ...]  # stored tensors that it is now
    kind: Format | None  # None: it stays as it is
    entries: dict[str, Entry]  # what will be stored

    @property
    def num_bytes(self) -> int:
        """Its size when it is written."""
        return sum(entry.num_bytes for entry in self.entries.values())


def planned(
    opened: Shards,
    source: Path,
    to: Format | None,
    max_shard_bytes: float | None,
    origin: Origin | None,
) -> list[list[Piece]]:
    """Which tensors go into which shard, in the order of the source's shards and none split."""
    pieces = [_piece(opened, name, parts, to, origin) for name, parts in opened.weights().items()]
    rounded = {opened.precision(n) for n in opened.weights()} & {"int8", "int4"}
    if rounded and to not in (*PLAIN, None):
        raise CheckpointError(
            f"{source} is quantized already ({' and '.join(sorted(rounded))}): rounded once more, "
            f"to {to}, it would lose twice; convert the folder it was made from"
        )
    changed = any(piece.kind for piece in pieces)
    if to == "fp8" and changed and any(opened.precision(n) == "fp8" for n in opened.weights()):
        raise CheckpointError(
            f"{source} holds some of its matrices in fp8 and some not; make --bf16 of it first"
        )
    if not changed and max_shard_bytes is None:
        raise CheckpointError(
            f"{source} is in {to} already; nothing to convert. --shard-size alone writes it in "
            "other shards"
        )
    plan: list[list[Piece]] = [[]]
    limit = max_shard_bytes or SHARD_BYTES
    room = limit
    for piece in pieces:
        if plan[-1] and piece.num_bytes > room:
            plan.append([])
            room = limit
        plan[-1].append(piece)
        room -= piece.num_bytes
    return plan


def _piece(
    opened: Shards, published: str, parts: tuple[str, ...], to: Format | None, origin: Origin | None
) -> Piece:
    kind = formats.kind_of(published, to) if to else None
    stored = opened.precision(published)
    if to and kind is None and stored in ("fp8", "int8", "int4"):
        kind = "bf16"  # what this format leaves alone stood in fewer bits
    if kind is None or kind == stored:
        entries = {p: Entry(opened.stored[p].dtype, opened.stored[p].shape) for p in parts}
        return Piece(published, parts, None, entries)
    shape = opened.shape(published)
    entries = formats.stored_as(published, shape, kind)
    if kind == "fp8" and origin:
        entries = origin.entries(published, shape)
    return Piece(published, parts, kind, entries)


def ends_short(piece: Piece) -> bool:
    """Whether the last group of a matrix in INT4 has fewer inputs than the others."""
    packed = piece.entries[piece.published + integers.PACKED]
    groups = piece.entries[piece.published + integers.SCALE]
    return packed.shape[1] * 8 != groups.shape[1] * integers.GROUP
