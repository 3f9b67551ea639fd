"""A whole model as packed matrices, and a pass of it in one native call (stack.cpp).

What torch does in some hundred calls a layer is one call for all layers: at small sizes the calls
are what a decoding step costs. A pass takes tokens of many sequences laid end to end, reads and
writes the paged latent cache in place, and leaves normed hidden states. The reference is the model
itself (`DeepSeekV3.forward` over a `PagedCache`), which the tests hold it against.

    T tokens    S sequences    D hidden_size    W vocab_size    E n_routed_experts    H heads
    K num_experts_per_tok
"""

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from abyssal.config import ModelConfig
from abyssal.kernels.linear import Kind, MatStruct
from abyssal.kernels.registry import Native, native
from abyssal.kernels.stack_structures import Ahead, Feed, Given, Layer, Model, Pool

Array = np.ndarray

LATENT_NORM_EPS = 1e-6  # of the two latent norms, as released


class Layers(NamedTuple):
    """The packed weights of a model, by names of the published checkpoint.

    A matrix that has several forms, or of which there are several, is one entry: the heads of
    ``kv_b_proj`` as ``.absorb``, ``.keys``, ``.values``, the experts of a layer as ``.experts.``.
    """

    matrices: Mapping[str, Sequence[MatStruct]]
    vectors: Mapping[str, Array]  # float32, but the embedding in its own precision
    embed_kind: int  # F32 or BF16
    held: object  # what keeps the matrices' memory


class Plan(NamedTuple):
    """What a pass reads, in the order in which stack.h wants it."""

    token: list[int]  # (T,)
    rows: list[int]  # (S,): how many of them are of each sequence ...
    start: list[int]  # ... and the position of the first
    pages: list[int]  # those that each sequence fills so far, one sequence after the other
    scored: list[int]  # rows whose scores are wanted


class Stack:
    """A model that runs natively. One pass at a time."""

    def __init__(self, config: ModelConfig, weights: Layers, softmax_scale: float):
        self.config, self.weights = config, weights
        self._width = -(-config.vocab_size // 16) * 16
        self._kept: list[object] = []  # what the structures point to
        self._run, self._head = _wanted("stack_run"), _wanted("stack_head")
        self._free = _wanted("stack_free")
        self._model = self._describe(softmax_scale)
        self._described: tuple[Tensor, Pool] | None = None  # the pool of the latest pass
        self._cos = self._sin = np.empty((0, config.qk_rope_head_dim // 2), np.float32)
        self.work = _wanted("stack_new")()

    def __del__(self) -> None:
        if hasattr(self, "work"):
            self._free(self.work)

    def set_angles(self, cos: Tensor, sin: Tensor) -> None:
        """Let position p turn by the angles whose cos and sin are in row p of (P, R/2) float32."""
        self._cos, self._sin = cos.contiguous().numpy(), sin.contiguous().numpy()
        self._model.cosine, self._model.sine = self._cos.ctypes.data, self._sin.ctypes.data

    @property
    def embed_dtype(self) -> torch.dtype:
        """The precision of the embedding, which the cache shares unless it is told otherwise."""
        return torch.bfloat16 if self.weights.embed_kind == Kind.BF16 else torch.float32

    @property
    def num_angles(self) -> int:
        """Positions whose angles are known."""
        return len(self._cos)

    def run(
        self,
        plan: Plan,
        pool: Tensor,
        *,
        before: Tensor | None = None,
        met: Tensor | None = None,
        chosen: Tensor | None = None,
        absorbed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Normed hidden states (T, D) of a plan's tokens, and scores (S, W) of those asked for.

        Both are float32; `pool` is the cache's.

        With `before` (T, D) it is the first prediction module that runs: on hidden states and the
        tokens behind theirs. `met` (MoE layers, E) int64 is added to; `chosen` (MoE layers, T, K)
        int32 is filled with the experts of each token, the best first. With `absorbed`, the bits of
        a row do not depend on how its sequence was cut into passes.
        """
        T, S, scored = len(plan.token), len(plan.rows), len(plan.scored)
        hidden = torch.empty(T, self.config.hidden_size)
        logits = torch.empty(scored, self._width)
        numbers = array("i", [number for column in plan for number in column])
        address, places = numbers.buffer_info()[0], []
        for column in plan:
            places.append(address)
            address += 4 * len(column)
        rows = places.pop()
        given = Given(
            T,
            S,
            torch.get_num_threads(),
            absorbed,
            *places,
            self._pool(pool),
            None if before is None else before.data_ptr(),
            hidden.data_ptr(),
            None if met is None else met.data_ptr(),
            None if chosen is None else chosen.data_ptr(),
            scored,
            rows,
            logits.data_ptr(),
        )
        self._run(self.work, ctypes.addressof(self._model), ctypes.addressof(given))
        return hidden, self._without_padding(logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (S, W) float32 of the token after each of hidden (S, D) float32."""
        out = torch.empty(len(hidden), self._width)
        address = ctypes.addressof(self._model)
        threads = torch.get_num_threads()
        self._head(self.work, address, hidden.contiguous(), len(hidden), out, self._width, threads)
        return self._without_padding(out)

    def _without_padding(self, logits: Tensor) -> Tensor:
        width = self.config.vocab_size
        return logits if width == self._width else logits[:, :width]

    def _pool(self, pool: Tensor) -> Pool:
        if self._described is None or self._described[0] is not pool:
            kind = {torch.float32: 0, torch.bfloat16: 1}.get(pool.dtype, 2)
            strides = [stride * pool.element_size() for stride in pool.stride()[:2]]
            C, R = self.config.kv_lora_rank, self.config.qk_rope_head_dim
            self._described = pool, Pool(pool.data_ptr(), *strides, kind, C, R)
        return self._described[1]

    # What stack.h is told

    def _describe(self, softmax_scale: float) -> Model:
        config, L = self.config, self.config.num_hidden_layers
        layers = (Layer * L)(*(self._layer(i) for i in range(L)))
        ahead = None
        if f"model.layers.{L}.eh_proj" in self.weights.matrices:
            ahead = Ahead(
                *(self._vector(f"model.layers.{L}.{name}.weight") for name in ("enorm", "hnorm")),
                self._vector(f"model.layers.{L}.shared_head.norm.weight"),
                self._one(f"model.layers.{L}.eh_proj"),
                self._layer(L),
            )
        self._kept += [layers, ahead]
        return Model(
            config.hidden_size,
            config.num_attention_heads,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            config.kv_lora_rank,
            config.q_lora_rank or 0,
            config.vocab_size,
            config.n_routed_experts,
            config.num_experts_per_tok,
            config.n_group,
            config.topk_group,
            config.norm_topk_prob,
            config.rms_norm_eps,
            LATENT_NORM_EPS,
            config.routed_scaling_factor,
            softmax_scale,
            self.weights.embed_kind,
            self._vector("model.embed_tokens.weight"),
            None,
            None,
            L,
            ctypes.addressof(layers),
            self._vector("model.norm.weight"),
            self._one("lm_head"),
            ctypes.addressof(ahead) if ahead else None,
        )

    def _layer(self, number: int) -> Layer:
        stem, config = f"model.layers.{number}.", self.config
        attn, mlp = f"{stem}self_attn.", f"{stem}mlp."
        low = config.q_lora_rank is not None
        routed = config.is_moe(number)
        dense = f"{mlp}shared_experts." if routed else mlp
        has_dense = not routed or config.n_shared_experts > 0
        return Layer(
            self._vector(f"{stem}input_layernorm.weight"),
            self._vector(f"{stem}post_attention_layernorm.weight"),
            self._vector(f"{attn}q_a_layernorm.weight") if low else None,
            self._vector(f"{attn}kv_a_layernorm.weight"),
            self._one(f"{attn}q_a_proj") if low else MatStruct(),
            self._one(f"{attn}q_b_proj" if low else f"{attn}q_proj"),
            self._one(f"{attn}kv_a_proj_with_mqa"),
            *(self._many(f"{attn}kv_b_proj.{part}") for part in ("absorb", "keys", "values")),
            self._one(f"{attn}o_proj"),
            self._feeds(dense)[0] if has_dense else Feed(),
            self._one(f"{mlp}gate") if routed else MatStruct(),
            self._vector(f"{mlp}gate.e_score_correction_bias") if routed else None,
            ctypes.addressof(self._feeds(f"{mlp}experts.")) if routed else None,
        )

    def _one(self, name: str) -> MatStruct:
        (matrix,) = self.weights.matrices[name]
        return matrix

    def _many(self, name: str) -> int:
        matrices = self.weights.matrices[name]
        array = (MatStruct * len(matrices))(*matrices)
        self._kept.append(array)
        return ctypes.addressof(array)

    def _feeds(self, stem: str) -> "ctypes.Array[Feed]":
        matrices = self.weights.matrices
        parts = (matrices[f"{stem}{name}_proj"] for name in ("gate", "up", "down"))
        feeds = [Feed(*three) for three in zip(*parts, strict=True)]
        array = (Feed * len(feeds))(*feeds)
        self._kept.append(array)
        return array

    def _vector(self, name: str) -> int:
        return int(self.weights.vectors[name].ctypes.data)


def is_available() -> bool:
    """Whether passes can run natively here."""
    return native("stack_run") is not None


def _wanted(name: str) -> Native:
    found = native(name)
    assert found is not None, "ask is_available() first"
    return found
