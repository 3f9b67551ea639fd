"""A model folder in another format or in other shards: tensor by tensor, whole or not there.

Tensors are read in the order of the source's shards, changed where the format wants it, and written
where they belong: in memory are one tensor, what becomes of it, and what the system keeps of the
files. The tokenizer and whatever else describes the model come along, what tells of a training run
does not. A run that was stopped, however hard, goes on with the shards that are whole; the new
folder appears in one step, after `approve` has seen it and all hashes are as they were written.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from abyssal.checkpoint import files, weights
from abyssal.checkpoint.draft import Draft
from abyssal.checkpoint.shard_file import ShardFile
from abyssal.checkpoint.shards import INDEX, Shards
from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant import formats, pieces, round_trip
from abyssal.quant.formats import PLAIN, Format
from abyssal.quant.pieces import Piece
from abyssal.quant.round_trip import Origin

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done

_AT_ONCE = 2**20  # numbers looked at together
_WRITTEN_ANEW = {INDEX, files.MANIFEST, "config.json"}
_OF_A_RUN = {"recipe.json", "metrics.jsonl", "report.html", "done.json"}  # that trained the source
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """A folder and what became of its weights."""

    folder: Path
    format: Format | None  # None: as it was, in other shards
    matrices: int  # tensors in the new format
    kept: int  # tensors as they were
    short_groups: int  # matrices with a last group of fewer inputs, which only we read
    shards: int
    shards_taken_over: int  # of an earlier run that was stopped
    bytes_before: int
    bytes_after: int


def convert(
    source: str | Path,
    out: str | Path,
    to: Format | None,
    *,
    approve: Callable[[Path], None] = lambda draft: None,
    progress: Progress = lambda done, total, what: None,
    max_shard_bytes: float | None = None,
) -> Converted:
    """Write the model of one folder into a new one: in another format, in other shards, or both.

    `approve` gets the folder before it has its name, and keeps it from appearing by raising;
    `progress` hears after each tensor how many bytes are done, of how many, and what goes on.
    Stopped by a signal or a full disk, the same call goes on where it was.

    Raises:
        CheckpointError: the source is broken or cannot become that, `out` exists, a weight is not
            finite, or the disk does not take it.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists already; name another folder, or remove that one")
    opened = open_whole(source)
    origin = round_trip.origin_of(source) if to == "fp8" else None
    plan = pieces.planned(opened, source, to, max_shard_bytes, origin)
    purpose = {**identity(source), "to": to or "shards", "shard bytes": max_shard_bytes}
    changes = to if any(piece.kind for shard in plan for piece in shard) else None
    work = _Work(source, changes, opened, origin, plan, progress)
    try:
        with Draft(out, purpose) as draft:
            taken_over = _made(work, draft, approve)
            draft.publish(lambda name: progress(work.total, work.total, f"comparing {name}"))
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(
            f"{out}: cannot be written ({problem}); make room and run the same command again, "
            "which goes on from the shards already written"
        ) from None
    made = [piece for shard in plan for piece in shard]
    return Converted(
        folder=out,
        format=to,
        matrices=sum(piece.kind is not None for piece in made),
        kept=sum(piece.kind is None for piece in made),
        short_groups=sum(piece.kind == "int4" and pieces.ends_short(piece) for piece in made),
        shards=len(plan),
        shards_taken_over=taken_over,
        bytes_before=sum(opened.num_bytes(piece.parts) for piece in made),
        bytes_after=sum(piece.num_bytes for piece in made),
    )


def _made(work: "_Work", draft: Draft, approve: Callable[[Path], None]) -> int:
    """All files written and approved of; nothing is left of what cannot come to be."""
    try:
        taken_over = work.write(draft)
    except CheckpointError:
        draft.discard()  # the same would happen again
        raise
    try:
        approve(draft.path)
    except Exception:
        draft.discard()
        raise
    return taken_over


def open_whole(source: Path) -> Shards:
    """The tensors of a source, all of them there and as its config says."""
    config = ModelConfig.load(source)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DeepSeekV3(config).state_dict().items()}
    return weights.check(source, config, shapes)


def identity(source: Path) -> dict[str, object]:
    """What tells a source from another, or from itself after a change; plain JSON."""
    found = sorted(path for path in source.iterdir() if path.suffix in (".safetensors", ".json"))
    stats = [(path.name, path.stat()) for path in found]
    return {
        "source": str(source.resolve()),
        "source files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }


class _Work:
    """One conversion on its way."""

    def __init__(
        self,
        source: Path,
        to: Format | None,
        opened: Shards,
        origin: Origin | None,
        plan: list[list[Piece]],
        progress: Progress,
    ):
        self.source, self.to, self.opened, self.origin = source, to, opened, origin
        self.plan, self.progress = plan, progress
        self.total = sum(piece.num_bytes for shard in plan for piece in shard)
        self.done = 0

    def write(self, draft: Draft) -> int:
        """Every file of the folder but the manifest; how many shards were there already."""
        taken_over = 0
        weight_map: dict[str, str] = {}
        for number, planned in enumerate(self.plan, 1):
            file = f"model-{number:05d}-of-{len(self.plan):05d}.safetensors"
            entries = {name: entry for piece in planned for name, entry in piece.entries.items()}
            weight_map |= dict.fromkeys(entries, file)
            if draft.has(file):
                taken_over += 1
                self.done += sum(piece.num_bytes for piece in planned)
                self.progress(self.done, self.total, f"{file} is there already")
                continue
            with ShardFile(draft.path / file, entries) as shard:
                for piece in planned:
                    for name, tensor in self._encoded(piece).items():
                        shard.put(name, tensor)
                    self.done += piece.num_bytes
                    self.progress(self.done, self.total, file)
            draft.add(file)
        self._scales(draft)
        index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
        files.dump(draft.path / INDEX, index)
        draft.add(INDEX)
        self._describe(draft)
        return taken_over

    def _encoded(self, piece: Piece) -> dict[str, Tensor]:
        self.opened.turn_to(piece.published)
        if piece.kind is None:
            return {part: self.opened.raw(part) for part in piece.parts}
        whole = self._multiplied_out(piece)
        if not is_finite(whole):
            raise CheckpointError(
                f"{self.opened.stored[piece.parts[0]].path}: {piece.published} holds numbers that "
                f"are not finite; nothing can be said of these in {piece.kind}"
            )
        if piece.kind == "fp8" and self.origin:
            found = self.origin.encode(piece.published, whole)
            return dict(zip(piece.entries, found, strict=True))
        return formats.encode(piece.published, whole, piece.kind)

    def _multiplied_out(self, piece: Piece) -> Tensor:
        """In bfloat16 for bf16; else no number is rounded before it is rounded to its format."""
        if self.opened.precision(piece.published) not in ("fp8", "int8", "int4"):
            whole = self.opened.raw(piece.published)
            return whole.to(PLAIN[piece.kind]) if piece.kind in PLAIN else whole
        exact = torch.bfloat16 if piece.kind == "bf16" else torch.float32
        return self.opened.matrix(piece.published).dequantize(exact)

    def _scales(self, draft: Draft) -> None:
        """What the way back to FP8 needs: of the source, or what the source keeps."""
        if self.to not in (*PLAIN, None) or draft.has(round_trip.FILE):
            return
        path = draft.path / round_trip.FILE
        kept = round_trip.to_keep(self.opened) if self.to else {}
        if kept:
            config = files.read_json(self.source / "config.json").get("quantization_config")
            with ShardFile(path, kept, round_trip.metadata(config)) as file:
                for name in kept:
                    file.put(name, self.opened.raw(name))
            self.opened.close()
        elif (self.source / round_trip.FILE).is_file():
            shutil.copyfile(self.source / round_trip.FILE, path)
        else:
            return
        draft.add(round_trip.FILE)

    def _describe(self, draft: Draft) -> None:
        """config.json, and the files that come along."""
        for path in _companions(self.source):
            shutil.copyfile(path, draft.path / path.name)
            draft.add(path.name)
        if self.to is None:
            shutil.copyfile(self.source / "config.json", draft.path / "config.json")
        else:
            files.dump(draft.path / "config.json", self._config(self.to))
        draft.add("config.json")

    def _config(self, to: Format) -> dict[str, object]:
        config = files.read_json(self.source / "config.json")
        config.pop("quantization_config", None)
        said = self.origin.config if self.origin else formats.quantization_config(to)
        if said is not None:
            return config | {"quantization_config": said}
        name = str(PLAIN[to]).removeprefix("torch.")
        return config | {"dtype": name, "torch_dtype": name}


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are, looked at in parts: no exponent is all ones."""
    kind, ones = {
        torch.bfloat16: (torch.int16, 0x7F80),
        torch.float16: (torch.int16, 0x7C00),
        torch.float32: (torch.int32, 0x7F800000),
    }[tensor.dtype]
    parts = tensor.contiguous().flatten().view(kind).split(_AT_ONCE)
    return all(int((part & ones).amax()) < ones for part in parts if part.numel())


def _companions(source: Path) -> Iterator[Path]:
    """Files beside the weights that describe the model: tokenizer, generation config, license."""
    for path in sorted(source.iterdir()):
        left = path.name in _WRITTEN_ANEW | _OF_A_RUN or path.suffix in _WEIGHTS
        if path.is_file() and not left and not path.name.startswith("."):
            yield path
