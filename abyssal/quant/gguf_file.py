"""A model folder as one GGUF file for llama.cpp: weights, sizes, vocabulary, chat template.

The architecture is llama.cpp's deepseek2 with latent attention. Tensors are written one after the
other, large ones in parts, so that the file may be larger than memory; a stopped run goes on behind
the last tensor that is whole. The file appears in one step, after everything in it was read again.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

import torch
from torch import Tensor

from abyssal.checkpoint import files
from abyssal.checkpoint.draft import Draft
from abyssal.checkpoint.shards import Shards
from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError, ConfigError
from abyssal.quant import convert, gguf_tensors
from abyssal.quant.convert import Progress
from abyssal.quant.gguf_tensors import Piece

try:
    import gguf
    from gguf import GGMLQuantizationType as Type
except ImportError:  # an extra: nothing else in the house needs it
    raise ConfigError(
        "writing GGUF files needs the gguf package; pip install 'abyssal[gguf]'"
    ) from None

from abyssal.quant import gguf_header  # needs it too

KINDS = {
    "f32": (Type.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_ALIGNMENT = 32  # bytes; of tensors in the file
_FILE, _JOURNAL = "model.gguf", "tensors.jsonl"
_READ_BYTES = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A file and what is in it."""

    file: Path
    type: str
    tensors: int
    tensors_taken_over: int  # of an earlier run that was stopped
    mtp_modules: int
    bytes: int
    sha256: str


class _Place(NamedTuple):
    """A tensor, its type, and where it lies in the file."""

    piece: Piece
    type: Type
    start: int
    num_bytes: int


def export(
    source: str | Path,
    out: str | Path,
    kind: str = "bf16",
    *,
    progress: Progress = lambda done, total, what: None,
) -> Exported:
    """Write the model of a folder to a GGUF file, its matrices in one of KINDS.

    Stopped by a signal or a full disk, the same call goes on where it was.

    Raises:
        CheckpointError: the source is broken, `out` exists, or the disk does not take it.
        ConfigError: llama.cpp cannot run this model, or not in that type.
        DataError: the tokenizer is missing or another than llama.cpp knows.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists already; name another file, or remove that one")
    config = ModelConfig.load(source)
    gguf_header.check(config)
    opened = convert.open_whole(source)
    wanted, file_type = KINDS[kind]
    types = [(piece, _type(piece, wanted)) for piece in gguf_tensors.pieces(config, opened)]
    purpose = {**convert.identity(source), "to": "gguf", "type": kind}
    try:
        with Draft(out, purpose, keep=(_FILE, _JOURNAL)) as draft:
            header = _header(draft.path / "header", source, config, file_type, types)
            places = _places(types, len(header))
            work = _Work(draft, config, opened, header, places, progress)
            taken_over = work.write()
            sha256 = work.compared()
            os.rename(draft.path / _FILE, out)
            draft.discard()
            files.sync(out.parent)
    except OSError as problem:
        raise CheckpointError(
            f"{out}: cannot be written ({problem}); make room and run the same command again, "
            "which goes on behind the last whole tensor"
        ) from None
    return Exported(
        file=out,
        type=kind,
        tensors=len(places),
        tensors_taken_over=taken_over,
        mtp_modules=config.num_nextn_predict_layers,
        bytes=out.stat().st_size,
        sha256=sha256,
    )


def _type(piece: Piece, wanted: Type) -> Type:
    if piece.plain or wanted == Type.F32:
        return Type.F32
    # llama.cpp's AMX buffers take stacks of small matrices, and then have no product for them.
    chosen = Type.BF16 if piece.half and wanted in (Type.Q8_0, Type.Q4_0) else wanted
    block, _ = gguf.GGML_QUANT_SIZES[chosen]
    if piece.shape[-1] % block:
        raise ConfigError(
            f"{piece.name} has rows of {piece.shape[-1]}, but {chosen.name} stores {block} numbers "
            "of a row together; take --gguf-type bf16"
        )
    return chosen


def _header(
    path: Path, source: Path, config: ModelConfig, file_type: int, types: list[tuple[Piece, Type]]
) -> bytes:
    """All that stands before the tensors."""
    writer = gguf.GGUFWriter(path, "deepseek2")
    gguf_header.describe(writer, source, config, file_type)
    for piece, kind in types:
        size, zero = _num_bytes(piece.shape, kind), torch.zeros(0).numpy().dtype
        writer.add_tensor_info(piece.name, piece.shape, zero, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    said = path.read_bytes()
    path.unlink()
    return said + bytes(-len(said) % _ALIGNMENT)


def _places(types: list[tuple[Piece, Type]], start: int) -> list[_Place]:
    found = []
    for piece, kind in types:
        size = _num_bytes(piece.shape, kind)
        found.append(_Place(piece, kind, start, size))
        start += size + -size % _ALIGNMENT
    return found


def _num_bytes(shape: tuple[int, ...], kind: Type) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


class _Work:
    """One file on its way: the header, then tensor by tensor; the journal knows which are whole."""

    def __init__(
        self,
        draft: Draft,
        config: ModelConfig,
        opened: Shards,
        header: bytes,
        places: list[_Place],
        progress: Progress,
    ):
        self.path, self.journal = draft.path / _FILE, draft.path / _JOURNAL
        self.config, self.opened, self.progress = config, opened, progress
        self.header, self.places = header, places
        self.total = places[-1].start + places[-1].num_bytes
        self.digests: list[str] = []  # of the tensors that are whole

    def write(self) -> int:
        """Write what is not there; how many tensors were."""
        self.path.touch()
        with self.path.open("r+b") as file:
            self._take_over(file)
            taken_over = len(self.digests)
            if not taken_over:
                file.seek(0)
                file.write(self.header)
            lines = [json.dumps([digest]) + "\n" for digest in self.digests]
            self.journal.write_text("".join(lines), encoding="utf-8")
            with self.journal.open("a", encoding="utf-8") as journal:
                for place in self.places[taken_over:]:
                    self.digests.append(self._put(file, place))
                    _to_disk(file)
                    journal.write(json.dumps([self.digests[-1]]) + "\n")
                    _to_disk(journal)
                    self.progress(place.start + place.num_bytes, self.total, place.piece.name)
            file.truncate(self.total + -self.total % _ALIGNMENT)
            _to_disk(file)
        return taken_over

    def compared(self) -> str:
        """The SHA-256 of the file, once all tensors in it are as they were written."""
        whole = hashlib.sha256()
        with self.path.open("rb") as file:
            for place, digest in zip(self.places, self.digests, strict=True):
                self.progress(self.total, self.total, f"comparing {place.piece.name}")
                if _digest(file, place, whole) != digest:
                    raise CheckpointError(
                        f"{self.path}: {place.piece.name} is not as it was written: the disk or "
                        "the memory loses data; run the same command again"
                    )
            _feed(file, self.path.stat().st_size - file.tell(), whole)
        return whole.hexdigest()

    def _take_over(self, file: BinaryIO) -> None:
        """Find out which tensors of an earlier run are still as they were written."""
        if not self.journal.exists() or file.read(len(self.header)) != self.header:
            return
        lines = self.journal.read_text(encoding="utf-8").splitlines(keepends=True)
        for line, place in zip(lines, self.places, strict=False):
            if not line.endswith("]\n") or [_digest(file, place)] != json.loads(line):
                return
            self.digests.extend(json.loads(line))
            self.progress(place.start + place.num_bytes, self.total, "is there already")

    def _put(self, file: BinaryIO, place: _Place) -> str:
        """Write one tensor; its SHA-256."""
        digest = hashlib.sha256()
        file.seek(place.start)
        for numbers in self._stored(place):
            file.write(numbers)
            digest.update(numbers)
        return digest.hexdigest()

    def _stored(self, place: _Place) -> Iterator[bytes]:
        for published in place.piece.published:
            self.opened.turn_to(published)
            part = place.piece._replace(published=(published,))
            for rows in gguf_tensors.numbers(part, self.config, self.opened):
                yield _bytes(rows, place)


def _bytes(rows: Tensor, place: _Place) -> bytes:
    """Numbers (R, I) or (I,) as the file has them."""
    plain = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
    if not convert.is_finite(rows.to(plain.get(place.type, torch.float32))):
        raise CheckpointError(
            f"{', '.join(place.piece.published[:3])}: not all numbers are finite in "
            f"{place.type.name}; take another --gguf-type, or another folder"
        )
    if place.type in plain:
        return rows.to(plain[place.type]).contiguous().view(torch.uint8).numpy().tobytes()
    return gguf.quants.quantize(rows.contiguous().numpy(), place.type).tobytes()


def _digest(file: BinaryIO, place: _Place, *others: "hashlib._Hash") -> str:
    """The SHA-256 of a tensor as the file has it; what lies before it is fed to the others too."""
    digest = hashlib.sha256()
    _feed(file, place.start - file.tell(), *others)
    _feed(file, place.num_bytes, digest, *others)
    return digest.hexdigest()


def _feed(file: BinaryIO, count: int, *digests: "hashlib._Hash") -> None:
    while count > 0:
        part = file.read(min(count, _READ_BYTES))
        if not part:
            return
        for digest in digests:
            digest.update(part)
        count -= len(part)


def _to_disk(file: "BinaryIO | TextIO") -> None:
    file.flush()
    os.fsync(file.fileno())
