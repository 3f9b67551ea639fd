"""A model folder of odd sizes in several shards, with every kind of tensor that a release has."""

import json
import os

import pytest
import torch

from abyssal.checkpoint import weights
from abyssal.config import ModelConfig
from abyssal.model.transformer import DeepSeekV3

CONFIG = ModelConfig(
    vocab_size=50, hidden_size=70, num_hidden_layers=2, first_k_dense_replace=1,
    intermediate_size=150, num_nextn_predict_layers=1, num_attention_heads=2, q_lora_rank=33,
    kv_lora_rank=64, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=7, moe_intermediate_size=9,
    n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _disk_need_not_be_waited_for(monkeypatch):
    """Flushing costs most of the time of a small write, and no test here pulls a plug."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def source(tmp_path):
    """Random weights in BF16, gate biases in float32, and files beside them."""
    folder = tmp_path / "source"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = DeepSeekV3(CONFIG).initialize().bfloat16()
        for gate in model.gates():
            gate.e_score_correction_bias = torch.randn(4)
    weights.write(folder, CONFIG, model.state_dict(), max_shard_bytes=60_000)
    (folder / "tokenizer.json").write_text('{"any": 1}')
    (folder / "LICENSE").write_text("do as you like\n")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "trainer").mkdir()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"unknown_to_us": [1, 2]}))
    return folder
