"""What packed weights are made of: every matrix of a model in the form there is a kernel for.

Packing reads one matrix at a time.

    H heads    N qk_nope_head_dim    V v_head_dim    C kv_lora_rank    E n_routed_experts
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from abyssal.checkpoint import names, weights
from abyssal.checkpoint.stored import Matrix
from abyssal.config import ModelConfig
from abyssal.engine.packed import Block, Entry
from abyssal.kernels.linear import GROUP, Kind, empty, pack_into
from abyssal.kernels.stack import Array
from abyssal.model.transformer import DeepSeekV3

_KINDS = {"f32": Kind.F32, "bf16": Kind.BF16, "int8": Kind.INT8, "int4": Kind.INT4, "fp8": Kind.FP8}
_FP8_BLOCK = (128, 128)


def of_model(model: DeepSeekV3) -> Iterator[Entry]:
    """Every block and vector of a model in memory, by name, one at a time."""
    return _released(ModelSource(model), model.config, None)


def of_folder(folder: Path, config: ModelConfig, dtype: torch.dtype | None) -> Iterator[Entry]:
    """The same of a model folder; `dtype` replaces the stored precision.

    Raises:
        CheckpointError: the folder's weights cannot be read.
    """
    return _released(FolderSource(folder, config), config, dtype)


# Where weights come from


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


# What they become


def _released(source: Source, config: ModelConfig, dtype: torch.dtype | None) -> Iterator[Entry]:
    """Entries, each with no memory but its own."""
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
