"""What fewer bits cost: the right differences, or the reason why there are none."""

import json
import math
from collections import Counter

import pytest
import torch

from abyssal.batch import Batch
from abyssal.checkpoint import shards
from abyssal.config import ModelConfig
from abyssal.errors import DataError
from abyssal.evals import fidelity
from abyssal.evals.harness import bits_per_byte
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant.convert import convert
from abyssal.tokenizer.bpe import Tokenizer

TEXTS = ["the deep sea is dark and the fish see\n" * 4, "the fish see the sea"]
CONFIG = ModelConfig(
    vocab_size=320, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
    intermediate_size=24, num_nextn_predict_layers=1, num_attention_heads=2, q_lora_rank=6,
    kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
    moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
    topk_group=1, max_position_embeddings=64, initializer_range=0.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model that has counted how often each token comes, and knows nothing else."""
    folder = tmp_path_factory.mktemp("counted") / "model"
    tokenizer = Tokenizer.train(TEXTS, 320)
    counts = Counter(token for text in TEXTS for token in tokenizer.encode(text))
    model = DeepSeekV3(CONFIG).initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.embed_tokens.weight.add_(1.0)
        model.lm_head.weight.normal_(0, 0.01)
        for token in range(320):
            model.lm_head.weight[token] += math.log(counts[token] + 0.01) / 16
    model.bfloat16().save(folder)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("to", ["int8", "int4", "fp8"])
def test_the_loss_is_the_difference_of_bits_per_byte(source, tmp_path, to):
    convert(source, tmp_path / "out", to)
    found = fidelity.measure(source, tmp_path / "out", TEXTS)
    tokenizer = Tokenizer.load(source)
    by_hand = [
        bits_per_byte(DeepSeekV3.load(folder).float(), tokenizer, TEXTS).bits_per_byte
        for folder in (source, tmp_path / "out")
    ]
    assert (found.before, found.after) == pytest.approx(by_hand, rel=1e-6)
    assert found.loss == pytest.approx(by_hand[1] - by_hand[0], abs=1e-6)
    assert found.unmeasured is None


def test_every_matrix_that_changed_is_listed_once_the_worst_first(source, tmp_path):
    convert(source, tmp_path / "out", "int4")
    found = fidelity.measure(source, tmp_path / "out", TEXTS).matrices
    after = shards.opened(tmp_path / "out").stored
    changed = {name.removesuffix("_scale") for name in after if name.endswith("_scale")}
    assert sorted(error.name for error in found) == sorted(changed)
    bad = [e.weight_error if e.output_error is None else e.output_error for e in found]
    assert bad == sorted(bad, reverse=True)
    for error in found:
        assert 0 < error.weight_error < 0.2
        assert (error.output_error is None) == (
            ".mlp.experts." in error.name or "shared_head" in error.name
        )


def test_errors_are_relative_frobenius_norms_on_what_the_source_computes(source, tmp_path):
    convert(source, tmp_path / "out", "int4")
    found = {e.name: e for e in fidelity.measure(source, tmp_path / "out", TEXTS).matrices}
    model = DeepSeekV3.load(source).float()
    texts = [[Tokenizer.load(source).bos_token_id, *Tokenizer.load(source).encode(t)]
             for t in TEXTS]  # fmt: skip
    batch = Batch.from_sequences([tokens[:64] for tokens in texts])
    before, after = shards.opened(source), shards.opened(tmp_path / "out")
    with torch.inference_mode():
        x = model.layers[0].input_layernorm(model.embed_tokens(batch.tokens))
        last = model(batch).hidden
    for name, inputs in (("model.layers.0.self_attn.q_a_proj.weight", x),
                         ("lm_head.weight", last)):  # fmt: skip
        w, q = before.tensor(name).float(), after.tensor(name).float()
        output = float((inputs @ (w - q).T).norm() / (inputs @ w.T).norm())
        assert found[name].weight_error == pytest.approx(float((w - q).norm() / w.norm()), rel=1e-3)
        assert found[name].output_error == pytest.approx(output, rel=1e-3)


def test_each_matrix_is_given_its_own_inputs(source):
    model = DeepSeekV3.load(source).float()
    batch = Batch.from_sequences([[1, 2, 3, 4, 5], [6, 7, 8]])
    inputs = fidelity.recorded_inputs(model, batch)
    matrices = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.dim() == 2 and not name.endswith(("embed_tokens.weight", "gate.weight"))
    }
    assert inputs.keys() == matrices.keys()
    for name, x in inputs.items():
        assert x.shape == (8, matrices[name].shape[1]), name
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_a_tokenizer_there_are_weight_errors_and_a_reason(source, tmp_path):
    model = DeepSeekV3.load(source)
    model.save(tmp_path / "mute")
    convert(tmp_path / "mute", tmp_path / "out", "int8")
    found = fidelity.measure(tmp_path / "mute", tmp_path / "out", TEXTS)
    assert (found.before, found.after, found.loss) == (None, None, None)
    assert "no tokenizer" in found.unmeasured
    assert found.matrices
    assert all(error.output_error is None for error in found.matrices)


def test_a_model_that_knows_nothing_has_nothing_to_lose(source, tmp_path):
    DeepSeekV3(CONFIG).initialize(torch.Generator().manual_seed(2)).save(tmp_path / "random")
    Tokenizer.load(source).save(tmp_path / "random")
    convert(tmp_path / "random", tmp_path / "out", "int8")
    found = fidelity.measure(tmp_path / "random", tmp_path / "out", TEXTS)
    assert found.loss is None
    assert "no better than chance" in found.unmeasured
    assert any(error.output_error is not None for error in found.matrices)


# The text


def test_the_stories_of_the_demo_are_enough_and_whole():
    texts = fidelity.held_out()
    size = sum(len(text.encode()) for text in texts)
    assert 0.9 * fidelity.TEXT_BYTES < size <= fidelity.TEXT_BYTES


def test_a_file_of_ones_own_is_read_up_to_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity, "TEXT_BYTES", 30)
    rows = [{"text": f"story number {i}"} for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert fidelity.held_out(tmp_path / "a.jsonl") == ["story number 0", "story number 1"]
    (tmp_path / "b.txt").write_text("ä" * 40)
    assert fidelity.held_out(tmp_path / "b.txt") == ["ä" * 15]
    (tmp_path / "c.jsonl").write_text("")
    with pytest.raises(DataError, match=r"c\.jsonl: no text"):
        fidelity.held_out(tmp_path / "c.jsonl")
