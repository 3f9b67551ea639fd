"""The tensors of a GGUF file of llama.cpp's architecture deepseek2, made of published ones.

The weights are the folder's own, under llama.cpp's names, with two changes of shape. kv_b_proj is
stored as the two matrices that absorb it: for each head K_b (N, C), transposed, and V_b (V, C). The
experts of a layer are one tensor. MTP modules are blocks behind the last, with ``nextn`` tensors of
their own; their copies of embedding and head are left out, the model's are read in their place.

    C kv_lora_rank    E n_routed_experts    H heads    N qk_nope_head_dim    V v_head_dim
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import Tensor

from abyssal.checkpoint.shards import Shards
from abyssal.config import ModelConfig

_AT_ONCE = 2**24  # numbers of a tensor at once: 64 MiB in float32
# Of one block: the published name -> llama.cpp's. Experts and kv_b_proj are not copied one to one.
_ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
}
_NEXTN = {
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "shared_head.norm": "nextn.shared_head_norm",
}


class Piece(NamedTuple):
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    published: tuple[str, ...]  # stacked, where there are several
    half: Literal["keys", "values"] | None = None  # of kv_b_proj
    plain: bool = False  # float32, whatever the type of the file


def pieces(config: ModelConfig, opened: Shards) -> Iterator[Piece]:
    """All tensors of the file, in its order."""
    yield _copy(opened, "token_embd.weight", "model.embed_tokens.weight")
    yield _copy(opened, "output_norm.weight", "model.norm.weight")
    yield _copy(opened, "output.weight", "lm_head.weight")
    blocks = config.num_hidden_layers
    for layer in range(blocks + config.num_nextn_predict_layers):
        at, to = f"model.layers.{layer}.", f"blk.{layer}."
        yield from _attention(config, opened, at, to)
        feed = _experts if config.is_moe(layer) or layer >= blocks else _dense
        yield from feed(config, opened, f"{at}mlp.", to)
        for published, theirs in _NEXTN.items() if layer >= blocks else ():
            yield _copy(opened, f"{to}{theirs}.weight", f"{at}{published}.weight")


def numbers(piece: Piece, config: ModelConfig, opened: Shards) -> Iterator[Tensor]:
    """The numbers of a tensor, float32 (rows, columns), piece by piece in their order."""
    for published in piece.published:
        whole = opened.tensor(published)
        if piece.half:
            whole = _half(piece.half, whole, config)
        for rows in whole.split(max(_AT_ONCE // whole.shape[-1], 1)):
            yield rows.float()
        del whole, rows


def _half(which: Literal["keys", "values"], weight: Tensor, config: ModelConfig) -> Tensor:
    """kv_b_proj (H * (N + V), C) -> its keys (H, C, N) or values (H, V, C), heads end to end."""
    heads = weight.unflatten(0, (config.num_attention_heads, -1))
    keys, theirs = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    chosen: Tensor = keys.transpose(1, 2) if which == "keys" else theirs
    return chosen.flatten(0, 1)


def _copy(opened: Shards, name: str, published: str, *, plain: bool = False) -> Piece:
    shape = opened.shape(published)
    return Piece(name, shape, (published,), plain=plain or len(shape) == 1)


def _attention(config: ModelConfig, opened: Shards, at: str, to: str) -> Iterator[Piece]:
    absent = ("q_proj",) if config.q_lora_rank else ("q_a_proj", "q_a_layernorm", "q_b_proj")
    for published, theirs in _ATTENTION.items():
        if not published.endswith(absent):
            yield _copy(opened, f"{to}{theirs}.weight", f"{at}{published}.weight")
    both = (f"{at}self_attn.kv_b_proj.weight",)
    H, C = config.num_attention_heads, config.kv_lora_rank
    keys, values = (H, C, config.qk_nope_head_dim), (H, config.v_head_dim, C)
    yield Piece(f"{to}attn_k_b.weight", keys, both, half="keys")
    yield Piece(f"{to}attn_v_b.weight", values, both, half="values")


def _dense(config: ModelConfig, opened: Shards, at: str, to: str) -> Iterator[Piece]:
    for part in ("gate", "up", "down"):
        yield _copy(opened, f"{to}ffn_{part}.weight", f"{at}{part}_proj.weight")


def _experts(config: ModelConfig, opened: Shards, at: str, to: str) -> Iterator[Piece]:
    bias = f"{at}gate.e_score_correction_bias"
    yield _copy(opened, f"{to}ffn_gate_inp.weight", f"{at}gate.weight", plain=True)
    yield _copy(opened, f"{to}exp_probs_b.bias", bias)
    for part in ("gate", "up", "down"):
        shared = f"{at}shared_experts.{part}_proj.weight"
        yield _copy(opened, f"{to}ffn_{part}_shexp.weight", shared)
        count = config.n_routed_experts
        stack = tuple(f"{at}experts.{expert}.{part}_proj.weight" for expert in range(count))
        yield Piece(f"{to}ffn_{part}_exps.weight", (count, *opened.shape(stack[0])), stack)
