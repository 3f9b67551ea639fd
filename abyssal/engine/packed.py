"""A model's weights packed for the native pass, kept in a file beside its folder.

    FOLDER/packed.bin: arrays, each at a multiple of 64 bytes; an index in JSON; the index's length

The index names what every array is and which weight files it was made of. The file is mapped, not
read: the second start costs nothing, and processes share it. Packing reads one matrix at a time.

    H heads    N qk_nope_head_dim    V v_head_dim    C kv_lora_rank    E n_routed_experts
"""

import json
import logging
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from abyssal.checkpoint import names, weights
from abyssal.checkpoint.stored import Matrix
from abyssal.config import ModelConfig
from abyssal.kernels.linear import GROUP, Kind, MatStruct, empty, pack_into
from abyssal.kernels.stack import Array, Layers
from abyssal.model.transformer import DeepSeekV3

FILE = "packed.bin"
FORMAT = 2  # of the file: raised when a layout changes

_ALIGNMENT = 64
SMALL_BYTES = 64 << 20  # of a file that is read rather than mapped
HUGE_PAGE = 2 << 20
_KINDS = {"f32": Kind.F32, "bf16": Kind.BF16, "int8": Kind.INT8, "int4": Kind.INT4, "fp8": Kind.FP8}
_FP8_BLOCK = (128, 128)

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Weights by published name."""

    def matrix(self, name: str) -> Matrix:
        """One matrix as it is stored."""

    def vector(self, name: str) -> Tensor:
        """One tensor that is no matrix product's."""

    def release(self) -> None:
        """Let go of the memory that what was given so far may hold."""


class FolderSource:
    """The weights of a model folder, which are what its config promises."""

    def __init__(self, folder: Path, config: ModelConfig):
        with torch.device("meta"):
            expected = DeepSeekV3(config).state_dict()
        shapes = {name: tensor.shape for name, tensor in expected.items()}
        self._shards = weights.check(folder, config, shapes)

    def matrix(self, name: str) -> Matrix:
        """One matrix as it is stored."""
        return self._shards.matrix(name)

    def vector(self, name: str) -> Tensor:
        """One tensor that is no matrix product's."""
        return self._shards.tensor(name)

    def release(self) -> None:
        """Unmap the files: what was read of them would count as this process's memory."""
        self._shards.close()


class ModelSource:
    """The weights of a model in memory."""

    def __init__(self, model: DeepSeekV3):
        self._places = {
            part.published: (tensor, part.place)
            for name, tensor in model.state_dict().items()
            for part in names.parts(name, tensor.shape, model.config)
        }

    def matrix(self, name: str) -> Matrix:
        """One matrix in the model's precision; float16 is widened."""
        weight = self.vector(name)
        if weight.dtype == torch.bfloat16:
            return Matrix("bf16", (weight.shape[0], weight.shape[1]), weight)
        return Matrix("f32", (weight.shape[0], weight.shape[1]), weight.float())

    def vector(self, name: str) -> Tensor:
        """One tensor that is no matrix product's."""
        tensor, place = self._places[name]
        weight: Tensor = tensor[place]
        return weight.detach().cpu().contiguous()

    def release(self) -> None:
        """The model holds its weights itself."""


# What a model is packed into


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
        """One description for native code a matrix."""
        columns = [self._addresses(array) for array in (self.data, self.scale, self.sum)]
        return [
            MatStruct(self.kind, self.n, self.k, self.kp, *three)
            for three in zip(*columns, strict=True)
        ]

    def _addresses(self, array: Array | None) -> list[int | None]:
        if array is None:
            return [None] * len(self.data)
        first = array.ctypes.data
        return [first + i * array.strides[0] for i in range(len(array))]


Entry = tuple[str, Block | Array]
Place = tuple[int, str, tuple[int, ...]]  # of an array in a file: offset, dtype, shape


def entries(source: Source, config: ModelConfig, dtype: torch.dtype | None) -> Iterator[Entry]:
    """Every block and vector by name, one at a time; `dtype` replaces the stored precision."""
    for name, one in _entries(source, config, dtype):
        source.release()
        yield name, one


def _entries(source: Source, config: ModelConfig, dtype: torch.dtype | None) -> Iterator[Entry]:
    yield "model.embed_tokens.weight", _embedding(source, dtype)
    last = config.num_hidden_layers + min(config.num_nextn_predict_layers, 1)
    for layer in range(last):
        yield from _layer(source, config, layer, dtype)
    if config.num_nextn_predict_layers:
        stem = f"model.layers.{config.num_hidden_layers}."
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield _vector(source, f"{stem}{name}.weight")
        yield f"{stem}eh_proj", _block(source, [f"{stem}eh_proj.weight"], dtype)
    yield _vector(source, "model.norm.weight")
    yield "lm_head", _block(source, ["lm_head.weight"], dtype)


def _layer(
    source: Source, config: ModelConfig, layer: int, dtype: torch.dtype | None
) -> Iterator[Entry]:
    stem = f"model.layers.{layer}."
    attn, mlp = f"{stem}self_attn.", f"{stem}mlp."
    yield _vector(source, f"{stem}input_layernorm.weight")
    yield _vector(source, f"{stem}post_attention_layernorm.weight")
    yield _vector(source, f"{attn}kv_a_layernorm.weight")
    projections = ["kv_a_proj_with_mqa", "o_proj"]
    if config.q_lora_rank is None:
        projections.append("q_proj")
    else:
        yield _vector(source, f"{attn}q_a_layernorm.weight")
        projections += ["q_a_proj", "q_b_proj"]
    for name in projections:
        yield f"{attn}{name}", _block(source, [f"{attn}{name}.weight"], dtype)
    yield from _heads(source, config, f"{attn}kv_b_proj", dtype)
    feeds = {mlp: [mlp]}
    if config.is_moe(layer):
        yield _vector(source, f"{mlp}gate.e_score_correction_bias")
        router = source.vector(f"{mlp}gate.weight").float()
        yield f"{mlp}gate", _packed([Matrix("f32", (len(router), router.shape[1]), router)])
        feeds = {f"{mlp}experts.": [f"{mlp}experts.{e}." for e in range(config.n_routed_experts)]}
        if config.n_shared_experts:
            feeds[f"{mlp}shared_experts."] = [f"{mlp}shared_experts."]
    for name, stems in feeds.items():
        for part in ("gate_proj", "up_proj", "down_proj"):
            yield f"{name}{part}", _block(source, [f"{s}{part}.weight" for s in stems], dtype)


def _heads(
    source: Source, config: ModelConfig, name: str, dtype: torch.dtype | None
) -> Iterator[Entry]:
    """kv_b_proj by heads: what unfolds keys (N, C), values (V, C), and absorbs queries (C, N)."""
    matrix = source.matrix(f"{name}.weight")
    whole = matrix.dequantize()
    whole = whole if dtype is None else whole.to(dtype)
    heads = whole.unflatten(0, (config.num_attention_heads, -1))  # (H, N+V, C)
    keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], 1)
    for part, some in (("absorb", keys.mT), ("keys", keys), ("values", values)):
        yield f"{name}.{part}", _packed([_plain(head) for head in some])


def _block(source: Source, published: list[str], dtype: torch.dtype | None) -> Block:
    matrices = (source.matrix(name) for name in published)
    return _packed([_native(matrix, dtype) for matrix in matrices])


def _native(matrix: Matrix, dtype: torch.dtype | None) -> Matrix:
    """The matrix in a form there is a kernel for."""
    if dtype is not None:
        return _plain(matrix.dequantize().to(dtype))
    odd_blocks = matrix.kind == "fp8" and matrix.block != _FP8_BLOCK
    odd_groups = matrix.kind == "int4" and matrix.block[1] != GROUP
    return _plain(matrix.dequantize()) if odd_blocks or odd_groups else matrix


def _plain(weight: Tensor) -> Matrix:
    kind = "bf16" if weight.dtype == torch.bfloat16 else "f32"
    data = weight if kind == "bf16" else weight.float()
    return Matrix(
        "bf16" if kind == "bf16" else "f32", (len(data), data.shape[1]), data.contiguous()
    )


def _packed(matrices: list[Matrix]) -> Block:
    """Matrices of one shape side by side; in BF16 where their kinds differ."""
    if len({matrix.kind for matrix in matrices}) > 1:
        matrices = [_plain(matrix.dequantize()) for matrix in matrices]
    (n, k), kind = matrices[0].shape, _KINDS[matrices[0].kind]
    room = empty(kind, n, k, len(matrices))
    for i, matrix in enumerate(matrices):
        pack_into(room[i], matrix.data, matrix.scale)
    scale = None if room.scale is None else room.scale.numpy()
    sums = None if room.sum is None else room.sum.numpy()
    return Block(int(kind), n, k, room.kp, room.data.numpy(), scale, sums)


def _embedding(source: Source, dtype: torch.dtype | None) -> Array:
    """The embedding (W, D): float32, or BF16 as uint16."""
    weight = source.matrix("model.embed_tokens.weight").dequantize()
    if (dtype or weight.dtype) == torch.bfloat16:
        return weight.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return weight.float().contiguous().numpy()


def _vector(source: Source, name: str) -> Entry:
    return name, source.vector(name).float().contiguous().numpy()


# In memory and in a file


def from_model(model: DeepSeekV3) -> Layers:
    """A model's weights, packed; the model may go afterwards."""
    return _layers(dict(entries(ModelSource(model), model.config, None)))


def refill(weights: Layers, model: DeepSeekV3) -> None:
    """Pack a model of the same shape and precision into the arrays of what `from_model` gave.

    One entry exists twice at a time; whoever holds addresses of the arrays sees the new weights.
    """
    held = weights.held
    assert isinstance(held, tuple)
    for old, (_, new) in zip(held, _entries(ModelSource(model), model.config, None), strict=True):
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
        made = entries(FolderSource(folder, config), config, dtype)
        try:
            _write(path, origin, made)
        except OSError as problem:
            logger.warning(
                "%s cannot be written (%s): the weights are packed anew at each start; make the "
                "folder writable",
                path,
                problem.strerror,
            )
            return _layers(dict(entries(FolderSource(folder, config), config, dtype)))
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
        return np.memmap(path, np.uint8, mode="r")
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
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return memory[offset : offset + size].view(dtype).reshape(shape)
