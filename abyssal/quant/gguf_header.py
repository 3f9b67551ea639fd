"""What a GGUF file says of a model before its tensors: sizes, rotary scaling, vocabulary, template.

The keys are those that llama.cpp reads for its architecture deepseek2. What it cannot compute is
refused here, so that no file is written that runs and says other things than the folder.
"""

import json
from pathlib import Path

import gguf
from gguf import GGUFWriter, TokenType

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError, DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.control import PAD
from abyssal.tokenizer.release import TokenizerFile, blank_file, read_file

_PRE = "deepseek-v3"  # the pre-tokenizer's name there


def describe(writer: GGUFWriter, source: Path, config: ModelConfig, file_type: int) -> None:
    """Add everything but the tensors.

    Raises:
        DataError: the tokenizer is missing, does not fit, or is not one that it knows.
    """
    writer.add_name(source.resolve().name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, config)
    _add_experts(writer, config)
    _add_rotary(writer, config)
    _add_vocabulary(writer, source, config.vocab_size)


def check(config: ModelConfig) -> None:
    """Raise ConfigError for a model that llama.cpp cannot run."""
    if config.n_shared_experts == 0:
        raise ConfigError("n_shared_experts=0, but llama.cpp's deepseek2 wants at least 1")
    if config.num_hidden_layers in (26, 27) and config.q_lora_rank:
        raise ConfigError(
            f"num_hidden_layers={config.num_hidden_layers}: llama.cpp takes such a model for "
            "DeepSeek-V2-Lite and does not look for its q_lora_rank"
        )
    scaling = config.rope_scaling
    if scaling and scaling.type == "linear":
        raise ConfigError(
            "rope_scaling is of type linear: llama.cpp's deepseek2 would give it YaRN's temperature"
        )
    if scaling and not scaling.mscale == scaling.mscale_all_dim > 0:
        raise ConfigError(
            f"rope_scaling has mscale={scaling.mscale} and mscale_all_dim="
            f"{scaling.mscale_all_dim}, but llama.cpp takes them to be the same and positive"
        )


def _add_sizes(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers + config.num_nextn_predict_layers)
    if config.num_nextn_predict_layers:
        writer.add_nextn_predict_layers(config.num_nextn_predict_layers)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # Absorbed, every head reads the same latent: one key head of C + R, its value head the first C.
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_q_lora_rank(config.q_lora_rank or 0)  # 0: queries are projected in one step
    writer.add_key_length(config.latent_size)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.v_head_dim)


def _add_experts(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_weights_scale(config.routed_scaling_factor)


def _add_rotary(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling.factor)
    writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
    writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    # Its reader divides by 0.1, the factor of ln(factor) in YaRN's temperature.
    writer.add_rope_scaling_yarn_log_mul(0.1 * scaling.mscale_all_dim)


def _add_vocabulary(writer: GGUFWriter, folder: Path, vocab_size: int) -> None:
    file, tokenizer = read_file(folder), Tokenizer.load(folder)
    _refuse_other_splits(folder, file)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, but config.json says "
            f"vocab_size={vocab_size:,}; they belong to different models"
        )
    # The model may have more rows than the tokenizer has tokens.
    names = [f"[UNUSED{token}]" for token in range(vocab_size)]
    types = [TokenType.UNUSED] * vocab_size
    for name, token in file["model"]["vocab"].items():
        names[token], types[token] = name, TokenType.NORMAL
    for added in file["added_tokens"]:
        # As llama.cpp's own converter has it: <think> is shown, the marks of turns are not.
        is_mark = added["special"] or added["content"].startswith(("<\uff5c", "<|"))
        names[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if is_mark else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE)
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges(file["model"]["merges"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if PAD in names:
        writer.add_pad_token_id(names.index(PAD))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    template = _template(folder)
    if template:
        writer.add_chat_template(template)


def _refuse_other_splits(folder: Path, file: TokenizerFile) -> None:
    if _patterns(file) != _patterns(blank_file()):
        raise DataError(
            f"{folder}: the tokenizer cuts text by other rules than DeepSeek-V3's; llama.cpp knows "
            f"those as {_PRE} and could not follow"
        )


def _patterns(file: TokenizerFile) -> list[object]:
    """The expressions that text is cut by."""
    found = file["pre_tokenizer"]
    steps = found.get("pretokenizers", [found]) if isinstance(found, dict) else []
    return [step.get("pattern") for step in steps if step.get("type") == "Split"]


def _template(folder: Path) -> str | None:
    alone = folder / "chat_template.jinja"  # where newer versions of transformers put it
    if alone.is_file():
        return alone.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    return found if isinstance(found, str) else None
