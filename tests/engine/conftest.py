"""A tokenizer of a few words and a random model that reads them, in float32."""

import pytest
import torch

from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

WORDS = "the deep sea is dark and the fish in the deep sea see the dark 深海 是 黑暗 的 🐟 🌊\n"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS * 4], 340)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> DeepSeekV3:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2,
        first_k_dense_replace=1, intermediate_size=48, num_nextn_predict_layers=0,
        num_attention_heads=2, q_lora_rank=None, kv_lora_rank=12, qk_rope_head_dim=8,
        qk_nope_head_dim=10, v_head_dim=6, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, max_position_embeddings=96,
        initializer_range=0.2,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(3))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def llm(model: DeepSeekV3, tokenizer: Tokenizer) -> LLM:
    return LLM(model, tokenizer)
