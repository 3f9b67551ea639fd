"""A model folder as one GGUF file for llama.cpp: its architecture deepseek2, latent attention.

The weights are the folder's own, under llama.cpp's names, with two changes of shape. kv_b_proj is
stored as the two matrices that absorb it: for each head K_b (N, C), transposed, and V_b (V, C). The
experts of a layer are one tensor. Gates and norms stay in float32, as llama.cpp wants them. The
vocabulary is byte-level BPE behind the pre-tokenizer that llama.cpp knows as deepseek-v3.

    C kv_lora_rank    E n_routed_experts    H heads    N qk_nope_head_dim    V v_head_dim
"""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from torch import Tensor

from abyssal.checkpoint.shards import Shards, block_size, headers
from abyssal.config import ModelConfig
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.release import read_file

KINDS = {
    "fp32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
# Of one block: the published name -> llama.cpp's. Experts and kv_b_proj are not copied one to one.
ATTENTION = {
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


def file_of(folder: Path, kind: str) -> Path:
    """The file of a folder's model, beside the folder, written if it is not there."""
    file = folder.with_name(f"{folder.name}.{kind}.gguf")
    if not file.exists():
        print(f"writing {file}", flush=True)
        draft = file.with_suffix(".draft")
        write(folder, draft, kind)
        draft.rename(file)
    return file


def write(folder: Path, file: Path, kind: str) -> None:
    """Write the model of a folder to file, its matrices in one of KINDS."""
    config = ModelConfig.load(folder)
    if config.rope_scaling:
        raise SystemExit(f"{folder}: rope_scaling is not converted; take a model without YaRN")
    wanted, file_type = KINDS[kind]
    writer = GGUFWriter(file, "deepseek2")
    writer.add_name(folder.name)
    writer.add_file_type(file_type)
    _add_sizes(writer, config)
    _add_vocabulary(writer, folder, config.vocab_size)
    for name, tensor in _tensors(config, Shards(headers(folder), block_size(folder))):
        plain = kind == "fp32" or tensor.dim() == 1 or "ffn_gate_inp" in name
        # llama.cpp's AMX buffers take stacks of small matrices, and then have no product for them.
        of_heads = name.endswith(("attn_k_b.weight", "attn_v_b.weight"))
        numbers = GGMLQuantizationType.BF16 if of_heads else wanted
        array = np.ascontiguousarray(tensor.float().numpy())
        if plain:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, numbers), raw_dtype=numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    # Absorbed, every head reads the same latent: one key head of C + R, its value head the first C.
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_q_lora_rank(config.q_lora_rank or 0)  # 0: queries are projected in one step
    writer.add_key_length(config.latent_size)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_weights_scale(config.routed_scaling_factor)


def _add_vocabulary(writer: GGUFWriter, folder: Path, vocab_size: int) -> None:
    file, tokenizer = read_file(folder), Tokenizer.load(folder)
    # The model may have more rows than the tokenizer has tokens.
    names = [f"[UNUSED{token}]" for token in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for name, token in file["model"]["vocab"].items():
        names[token], types[token] = name, TokenType.NORMAL
    for added in file["added_tokens"]:
        names[added["id"]], types[added["id"]] = added["content"], TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges(file["model"]["merges"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _tensors(config: ModelConfig, shards: Shards) -> Iterator[tuple[str, Tensor]]:
    yield "token_embd.weight", shards.tensor("model.embed_tokens.weight")
    yield "output_norm.weight", shards.tensor("model.norm.weight")
    yield "output.weight", shards.tensor("lm_head.weight")
    for layer in range(config.num_hidden_layers):
        parts = _attention(config, shards, f"model.layers.{layer}.")
        feed = _experts if config.is_moe(layer) else _dense
        for name, tensor in (*parts, *feed(config, shards, f"model.layers.{layer}.mlp.")):
            yield f"blk.{layer}.{name}", tensor


def _attention(config: ModelConfig, shards: Shards, at: str) -> Iterator[tuple[str, Tensor]]:
    absent = ("q_proj",) if config.q_lora_rank else ("q_a_proj", "q_a_layernorm", "q_b_proj")
    for published, theirs in ATTENTION.items():
        if not published.endswith(absent):
            yield f"{theirs}.weight", shards.tensor(f"{at}{published}.weight")
    weight = shards.tensor(f"{at}self_attn.kv_b_proj.weight")
    weight = weight.unflatten(0, (config.num_attention_heads, -1))  # (H, N + V, C)
    keys, values = weight.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    yield "attn_k_b.weight", keys.transpose(1, 2)  # (H, C, N)
    yield "attn_v_b.weight", values  # (H, V, C)


def _dense(config: ModelConfig, shards: Shards, at: str) -> Iterator[tuple[str, Tensor]]:
    for part in ("gate", "up", "down"):
        yield f"ffn_{part}.weight", shards.tensor(f"{at}{part}_proj.weight")


def _experts(config: ModelConfig, shards: Shards, at: str) -> Iterator[tuple[str, Tensor]]:
    yield "ffn_gate_inp.weight", shards.tensor(f"{at}gate.weight")
    yield "exp_probs_b.bias", shards.tensor(f"{at}gate.e_score_correction_bias")
    for part in ("gate", "up", "down"):
        yield f"ffn_{part}_shexp.weight", shards.tensor(f"{at}shared_experts.{part}_proj.weight")
        of_experts = [
            shards.tensor(f"{at}experts.{expert}.{part}_proj.weight")
            for expert in range(config.n_routed_experts)
        ]
        yield f"ffn_{part}_exps.weight", torch.stack(of_experts)  # (E, out, in)
