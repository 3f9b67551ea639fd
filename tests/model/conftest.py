"""Small random models, and a cache made of plain tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from abyssal.config import ModelConfig, RopeScaling
from abyssal.model.transformer import DeepSeekV3


class ListCache:
    """The latents of one sequence, a tensor for each layer: the smallest LatentCache there is."""

    def __init__(self, kv_lora_rank: int):
        self.kv_lora_rank = kv_lora_rank
        self.layers: dict[int, Tensor] = {}

    def append(self, layer: int, latents: Tensor) -> None:
        self.layers[layer] = torch.cat([self.layers.get(layer, latents[:0]), latents])

    def attend(self, layer: int, q: Tensor, scale: float) -> Tensor:
        latents = self.layers[layer]  # (S, C+R)
        scores = torch.einsum("thc,sc->ths", q, latents) * scale
        future = torch.ones(len(q), len(latents), dtype=torch.bool).triu(len(latents) - len(q) + 1)
        weights = scores.masked_fill(future.unsqueeze(1), -torch.inf).softmax(-1)
        return torch.einsum("ths,sc->thc", weights, latents[:, : self.kv_lora_rank])


@pytest.fixture
def cache() -> ListCache:
    return ListCache(SMALL["kv_lora_rank"])


SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 36,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 3,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 8,
    "v_head_dim": 7,
    "moe_intermediate_size": 9,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 640,
    "initializer_range": 0.2,
    "rope_scaling": RopeScaling(original_max_position_embeddings=16),
}


@pytest.fixture
def small_config() -> Callable[..., ModelConfig]:
    """Every mechanism of the model on sizes no two of which are equal; changed by keywords."""
    return lambda **changes: ModelConfig(**(SMALL | changes))


@pytest.fixture
def small_model(small_config: Callable[..., ModelConfig]) -> Callable[..., DeepSeekV3]:
    """A random model of that configuration, its gains and gate biases drawn as well."""

    def build(**changes: object) -> DeepSeekV3:
        model = DeepSeekV3(small_config(**changes)).initialize(torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5, generator=generator)
            for gate in model.gates():
                gate.e_score_correction_bias.uniform_(-0.3, 0.3, generator=generator)
        return model

    return build
