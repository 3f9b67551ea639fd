"""A small random model in float32, in a folder and loaded."""

from pathlib import Path

import pytest
import torch

from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

WORDS = ["the deep sea is dark and the fish who did see what it was 1 2 3 + - = 深海 黑暗\n" * 4]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("evaluated")
    config = ModelConfig(
        vocab_size=340, hidden_size=16, num_hidden_layers=3, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=1, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).save(path)
    Tokenizer.train(WORDS, 340).save(path)
    return path


@pytest.fixture(scope="session")
def evaluated(folder) -> LLM:
    return LLM(folder, options=EngineOptions(deterministic=True))
