"""Pairs of the same small random model: ours, and the one in `transformers`."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from abyssal.config import ModelConfig, RopeScaling
from abyssal.model.transformer import DeepSeekV3

SEEDS = range(24)
BIASES = [(-20.0, 20.0), (-20.0, 0.0), (-0.5, 0.5)]  # taken in turn; scores are in (0, 1)
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}


@dataclass
class Pair:
    """One model twice; ours was loaded from the folder theirs was saved to."""

    seed: int
    ours: DeepSeekV3
    theirs: DeepseekV3ForCausalLM
    tokens: Tensor  # (2, 13): two rows of one length, so that theirs needs no padding


def random_config(seed: int) -> ModelConfig:
    """Every structural choice drawn at random, every size small, odd where it may be."""
    rng = random.Random(seed)
    n_group, per_group = rng.choice([1, 2, 4, 4]), rng.choice([2, 3, 4])
    topk_group = rng.randint(1, n_group)
    layers = rng.randint(1, 3)
    return ModelConfig(
        vocab_size=rng.choice([61, 96]),
        hidden_size=rng.choice([24, 40]),
        num_hidden_layers=layers,
        first_k_dense_replace=rng.randint(0, layers - 1),
        intermediate_size=rng.choice([20, 36]),
        num_nextn_predict_layers=0,
        num_attention_heads=rng.choice([1, 2, 3]),
        q_lora_rank=rng.choice([None, 12]),
        kv_lora_rank=rng.choice([8, 20]),
        qk_rope_head_dim=rng.choice([4, 8]),
        qk_nope_head_dim=rng.choice([6, 12]),
        v_head_dim=rng.choice([5, 16]),
        moe_intermediate_size=rng.choice([7, 16]),
        n_shared_experts=rng.choice([1, 2]),
        n_routed_experts=n_group * per_group,
        num_experts_per_tok=rng.randint(1, min(4, topk_group * per_group)),
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=rng.random() < 0.8,
        routed_scaling_factor=rng.choice([1.0, 2.5]),
        max_position_embeddings=160,
        rope_theta=rng.choice([100.0, 10000.0]),
        rope_scaling=rng.choice([None, *_scalings()]),
        rms_norm_eps=rng.choice([1e-6, 1e-3]),
    )


def _scalings() -> Iterator[RopeScaling]:
    yield RopeScaling(factor=10.0, original_max_position_embeddings=16)
    yield RopeScaling(original_max_position_embeddings=64, mscale=0.707)
    yield RopeScaling(original_max_position_embeddings=4096, beta_fast=16.0, mscale_all_dim=0.5)
    yield RopeScaling(type="linear", factor=10.0, original_max_position_embeddings=16)


@pytest.fixture(scope="module", params=SEEDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The same random weights twice; in two of three models gate biases dwarf the scores."""
    seed: int = request.param
    folder: Path = tmp_path_factory.mktemp("theirs")
    config = random_config(seed)
    theirs = DeepseekV3ForCausalLM._from_config(DeepseekV3Config(**config.to_dict()), **EAGER)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        for name, buffer in theirs.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(*BIASES[seed % 3], generator=generator)
    theirs.save_pretrained(folder)
    tokens = torch.randint(config.vocab_size, (2, 13), generator=generator)
    return Pair(seed, DeepSeekV3.load(folder), theirs.eval(), tokens)
