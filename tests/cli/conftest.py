"""A small model folder, and lines that come through a pipe."""

import io

import pytest
import torch

from abyssal.config import ModelConfig
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A model folder with a random model and a tokenizer of a few words."""
    path = tmp_path_factory.mktemp("model")
    config = ModelConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).save(path)
    Tokenizer.train(["the deep sea is dark and the fish see\n" * 4], 320).save(path)
    return str(path)


@pytest.fixture
def typed(monkeypatch):
    """typed("a", "b"): lines that come through a pipe."""
    return lambda *lines: monkeypatch.setattr(
        "sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines))
    )
