"""Bits per byte: every token once, with context enough, whatever shares the pass."""

import gzip
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.batch import Batch
from abyssal.config import ModelConfig
from abyssal.engine.llm import LLM
from abyssal.errors import DataError
from abyssal.evals.harness import bits_per_byte, bits_per_byte_of_file, windows
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

TEXTS = [
    "the deep sea is dark", "深海是黑暗的", "fish", "", "see the fish 🐟 in the deep " * 9,
    "the sea " * 40,
]  # fmt: skip


@pytest.fixture(scope="module")
def llm() -> LLM:
    tokenizer = Tokenizer.train(["the deep sea is dark and the fish see 深海 黑暗\n" * 4], 320)
    config = ModelConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=24, num_nextn_predict_layers=0, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(1)).eval()
    return LLM(model, tokenizer)


def nats_by_the_definition(llm: LLM, text: str) -> tuple[float, int]:
    """Each token alone: its probability after the window it belongs to."""
    tokens = llm.tokenizer.encode(text, bos=True)
    context = llm.config.max_position_embeddings
    nats = 0.0
    for i in range(1, len(tokens)):
        start = 0
        while i - start >= context:
            start += context // 2
        logits = llm.model.logits(Batch.from_sequences([tokens[start:i]]))[-1]
        nats -= logits.log_softmax(-1)[tokens[i]].item()
    return nats, len(tokens) - 1


@torch.no_grad()
def test_bits_are_the_log_probabilities_of_all_tokens_over_all_bytes(llm):
    found = bits_per_byte(llm, llm.tokenizer, TEXTS)
    parts = [nats_by_the_definition(llm, text) for text in TEXTS]
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found.bits == pytest.approx(sum(n for n, _ in parts) / math.log(2), rel=1e-5)
    assert found.bits_per_byte == found.bits / num_bytes
    assert (found.bytes, found.documents) == (num_bytes, len(TEXTS))
    assert found.tokens == sum(count for _, count in parts) > 150
    assert found.perplexity == pytest.approx(2 ** (found.bits / found.tokens))
    assert bits_per_byte(llm.model, llm.tokenizer, iter(TEXTS)) == found


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_token(llm):
    blank = DeepSeekV3(llm.config).initialize().eval()
    blank.lm_head.weight.data.zero_()
    found = bits_per_byte(blank, llm.tokenizer, TEXTS)
    assert found.bits == pytest.approx(found.tokens * math.log2(320))


@given(st.integers(1, 90), st.integers(2, 20))
def test_windows_score_every_token_once_with_half_a_window_before_it(length, context):
    tokens = list(range(length))
    scored = []
    for window in windows(tokens, context):
        assert len(window.tokens) <= context
        assert window.tokens[0] == 0 or window.first >= context // 2
        scored += window.tokens[window.first :]
    assert scored == tokens[1:]


def test_files_count_documents_and_say_what_they_dropped(llm, tmp_path):
    rows = [json.dumps({"text": text}) for text in TEXTS[:3]]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "{broken", '{"body": 1}']) + "\n")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write("\n".join(rows))
    (tmp_path / "one.txt").write_text(TEXTS[0])
    found, report = bits_per_byte_of_file(llm, tmp_path / "rows.jsonl")
    assert found == bits_per_byte(llm, llm.tokenizer, TEXTS[:3])
    assert sum(report.dropped.values()) == 2
    assert bits_per_byte_of_file(llm, tmp_path / "rows.jsonl.gz")[0] == found
    alone = bits_per_byte_of_file(llm, tmp_path / "one.txt")[0]
    assert alone == bits_per_byte(llm, llm.tokenizer, TEXTS[:1])


def test_no_text_is_no_measurement(llm, tmp_path):
    with pytest.raises(DataError, match="0 documents"):
        bits_per_byte(llm, llm.tokenizer, [])
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        bits_per_byte_of_file(llm, tmp_path / "nowhere.jsonl")
