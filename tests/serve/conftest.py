"""A tokenizer of a few words with all control tokens, and a random model that reads them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.model.transformer import DeepSeekV3
from abyssal.serve.store import Store
from abyssal.tokenizer.bpe import Tokenizer
from tests.serve.client import VOCAB_SIZE

WORDS = 'the deep sea is dark and the fish see {"a": [1, true]} 深海 是 黑暗 的 🐟 🌊\n'


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS * 4], VOCAB_SIZE)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> DeepSeekV3:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2,
        first_k_dense_replace=1, intermediate_size=48, num_nextn_predict_layers=0,
        num_attention_heads=2, q_lora_rank=None, kv_lora_rank=12, qk_rope_head_dim=8,
        qk_nope_head_dim=10, v_head_dim=6, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, max_position_embeddings=2048,
        initializer_range=0.2,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(3))
    return model.eval().requires_grad_(False)


@pytest.fixture
def llm(model: DeepSeekV3, tokenizer: Tokenizer) -> LLM:
    return LLM(model, tokenizer, options=EngineOptions(max_running=8))


@pytest.fixture
def narrow(model: DeepSeekV3, tokenizer: Tokenizer) -> LLM:
    """One that writes a single answer at a time."""
    return LLM(model, tokenizer, options=EngineOptions(max_running=1))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty history."""
    with Store(tmp_path / "data" / "history.sqlite3") as store:
        yield store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
