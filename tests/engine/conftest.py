"""A tokenizer of a few words, and small models that read them, in float32: a random one, and one
that has learned the words by heart, its MTP module as well.
"""

import pytest
import torch
import torch.nn.functional as F

from abyssal.batch import Batch
from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

WORDS = "the deep sea is dark and the fish in the deep sea see the dark 深海 是 黑暗 的 🐟 🌊\n"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS * 4], 340)


def small(vocab_size: int, **changes: int) -> ModelConfig:
    values = {
        "vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2,
        "first_k_dense_replace": 1, "intermediate_size": 48, "num_nextn_predict_layers": 0,
        "num_attention_heads": 2, "q_lora_rank": None, "kv_lora_rank": 12, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 10, "v_head_dim": 6, "moe_intermediate_size": 16,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "max_position_embeddings": 96, "initializer_range": 0.2,
    }  # fmt: skip
    return ModelConfig(**values | changes)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> DeepSeekV3:
    config = small(tokenizer.vocab_size)
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(3))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def llm(model: DeepSeekV3, tokenizer: Tokenizer) -> LLM:
    return LLM(model, tokenizer)


@pytest.fixture(scope="session")
def taught(tokenizer: Tokenizer) -> DeepSeekV3:
    """A model that knows the words by heart; most of what its MTP module guesses is right."""
    config = small(tokenizer.vocab_size, num_nextn_predict_layers=1, max_position_embeddings=320)
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(5))
    text = tokenizer.encode(WORDS * 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(7)
    for _ in range(150):
        starts = torch.randint(0, len(text) // 3, (4,), generator=generator).tolist()
        rows = [text[start : start + 40] for start in starts]
        batch = Batch.from_sequences(rows)
        output = model(batch, mtp=True)
        loss = torch.zeros(())
        for depth, hidden in enumerate((output.hidden, *output.mtp_hidden), 1):
            logits = model.lm_head(hidden).unflatten(0, (4, 40))[:, :-depth]
            labels = batch.tokens.view(4, 40)[:, depth:]
            loss = loss + F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)
