"""A model's weights packed for the native pass, kept in a file beside its folder.

    FOLDER/packed.bin: arrays, each at a multiple of 64 bytes; an index in JSON; the index's length

The index names what every array is and which weight files it was made of. The file is mapped, not
read: the second start costs nothing, and processes share it. What is in it, `engine/packing.py`
says, which only the first start needs.
"""

import json
import logging
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from abyssal.config import ModelConfig
from abyssal.kernels.linear import Kind, MatStruct
from abyssal.kernels.stack import Array, Layers

if TYPE_CHECKING:
    from abyssal.model.transformer import DeepSeekV3

FILE = "packed.bin"
FORMAT = 2  # of the file: raised when a layout changes

_ALIGNMENT = 64
SMALL_BYTES = 64 << 20  # of a file that is read rather than mapped
HUGE_PAGE = 2 << 20

logger = logging.getLogger(__name__)


class Block(NamedTuple):
    """Matrices of one shape and kind: those of all heads, of all experts, or a single one."""

    kind: int
    n: int
    k: int
    kp: int
    data: Array  # (count, bytes) uint8
    scale: Array | None  # (count, ...) float32
    sum: Array | None  # (count, Np) int32

    def structs(self) -> list[MatStruct]:
        """One description for native code a matrix: filled in by columns."""
        rows = np.zeros((len(self.data), 7), np.int64)
        rows[:, :4] = self[:4]
        for column, array in enumerate((self.data, self.scale, self.sum), 4):
            if array is not None:
                first = array.__array_interface__["data"][0]
                rows[:, column] = first + np.arange(len(rows)) * array.strides[0]
        return list((MatStruct * len(rows)).from_buffer(rows.data))


Entry = tuple[str, Block | Array]
Place = tuple[int, str, tuple[int, ...]]  # of an array in a file: offset, dtype, shape


def from_model(model: "DeepSeekV3") -> Layers:
    """A model's weights, packed; the model may go afterwards."""
    from abyssal.engine import packing  # and with it the model: not for a start that maps

    return _layers(dict(packing.of_model(model)))


def refill(weights: Layers, model: "DeepSeekV3") -> None:
    """Pack a model of the same shape and precision into the arrays of what `from_model` gave.

    One entry exists twice at a time; whoever holds addresses of the arrays sees the new weights.
    """
    from abyssal.engine import packing

    held = weights.held
    assert isinstance(held, tuple)
    for old, (_, new) in zip(held, packing.of_model(model), strict=True):
        for room, array in zip(_arrays(old), _arrays(new), strict=True):
            np.copyto(room, array, casting="no")


def _arrays(one: Block | Array) -> list[Array]:
    if isinstance(one, Block):
        return [array for array in (one.data, one.scale, one.sum) if array is not None]
    return [one]


def from_folder(
    folder: str | Path, config: ModelConfig, dtype: torch.dtype | None = None
) -> Layers:
    """The weights of a folder: from its packed file, which is made if it is missing or outdated.

    Where the folder cannot be written, the packed weights stay in memory, and a warning says so.

    Raises:
        CheckpointError: the folder's weights cannot be read.
    """
    folder = Path(folder)
    origin = _origin(folder, dtype)
    path = folder / (FILE if dtype is None else f"packed-{str(dtype).removeprefix('torch.')}.bin")
    found = _mapped(path, origin)
    if found is None:
        from abyssal.engine import packing  # and with it the model: not for a start that maps

        try:
            _write(path, origin, packing.of_folder(folder, config, dtype))
        except OSError as problem:
            logger.warning(
                "%s cannot be written (%s): the weights are packed anew at each start; make the "
                "folder writable",
                path,
                problem.strerror,
            )
            return _layers(dict(packing.of_folder(folder, config, dtype)))
        found = _mapped(path, origin)
        assert found is not None
    return _layers(found)


def _layers(found: Mapping[str, Block | Array]) -> Layers:
    matrices = {name: one.structs() for name, one in found.items() if isinstance(one, Block)}
    vectors = {name: one for name, one in found.items() if isinstance(one, np.ndarray)}
    is_float = vectors["model.embed_tokens.weight"].dtype == np.float32
    return Layers(
        matrices, vectors, int(Kind.F32 if is_float else Kind.BF16), tuple(found.values())
    )


def _origin(folder: Path, dtype: torch.dtype | None) -> dict[str, object]:
    """What a packed file depends on."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return {"format": FORMAT, "files": stats, "dtype": str(dtype)}


def _write(path: Path, origin: dict[str, object], made: Iterator[Entry]) -> None:
    """Publish a packed file in one step."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{FILE}-", delete=False) as file:
        try:
            index: dict[str, object] = {"origin": origin}
            index["arrays"] = {name: _put_entry(file, one) for name, one in made}
            text = json.dumps(index).encode()
            file.write(text)
            file.write(len(text).to_bytes(8, "little"))
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(file.name)
            raise


def _put_entry(file: IO[bytes], one: Block | Array) -> list[Any]:
    if isinstance(one, np.ndarray):
        return [_put(file, one)]
    arrays = [None if array is None else _put(file, array) for array in one[4:]]
    return [*one[:4], *arrays]


def _put(file: IO[bytes], array: Array) -> Place:
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    offset = file.tell()
    file.write(np.ascontiguousarray(array).data)
    return offset, array.dtype.name, array.shape


def _mapped(path: Path, origin: dict[str, object]) -> dict[str, Block | Array] | None:
    """The arrays of a packed file, or None if it is not what `origin` would give."""
    try:
        memory = _memory(path)
    except (OSError, ValueError):  # missing; empty
        return None
    length = int.from_bytes(memory[-8:].tobytes(), "little")
    if not 0 < length <= len(memory) - 8:
        return None
    try:
        index = json.loads(memory[-8 - length : -8].tobytes())
    except ValueError:  # cut off while it was copied
        return None
    if index["origin"] != origin:
        return None
    return {name: _get_entry(memory, entry) for name, entry in index["arrays"].items()}


def _memory(path: Path) -> Array:
    """The bytes of a file: mapped, or, if it is small, read into pages of 2 MiB.

    A small model's weights stay in the CPU's caches, and then the borders of pages are what holds
    up a step: across them nothing is fetched ahead.
    """
    size = path.stat().st_size
    if size > SMALL_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        # A plain array over the map: slices of a memmap cost four times as much.
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE, flags)
    pages.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(pages, np.uint8)
    first = -whole.ctypes.data % HUGE_PAGE
    memory = whole[first : first + size]
    with path.open("rb") as file:
        file.readinto(memory.data)
    memory.flags.writeable = False
    return memory


def _get_entry(memory: Array, entry: list[Any]) -> Block | Array:
    if len(entry) == 1:
        return _get(memory, entry[0])
    arrays = [None if place is None else _get(memory, place) for place in entry[4:]]
    return Block(*entry[:4], *arrays)


def _get(memory: Array, place: Place) -> Array:
    offset, dtype, shape = place
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return memory[offset : offset + size].view(dtype).reshape(shape)
