"""GGUF files: the folder's weights under llama.cpp's names; llama.cpp computes what we compute."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch

from abyssal.batch import Batch
from abyssal.checkpoint import shards
from abyssal.config import ModelConfig, RopeScaling
from abyssal.errors import CheckpointError, ConfigError, DataError
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant.convert import convert
from abyssal.quant.gguf_file import export
from abyssal.tokenizer.bpe import Tokenizer

CONFIG = ModelConfig(
    vocab_size=350, hidden_size=64, num_hidden_layers=3, first_k_dense_replace=1,
    intermediate_size=96, num_nextn_predict_layers=1, num_attention_heads=4, q_lora_rank=32,
    kv_lora_rank=64, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=32,
    moe_intermediate_size=32, n_shared_experts=2, n_routed_experts=8, num_experts_per_tok=3,
    n_group=4, topk_group=2, routed_scaling_factor=2.5, max_position_embeddings=256,
    rope_scaling=RopeScaling(factor=8.0, original_max_position_embeddings=32),
)  # fmt: skip
TEXT = "the deep sea is dark and the 1234 fish see <think> nothing\n"


def make(folder, **changes):
    """Random weights that make very unlike logits, and a tokenizer of a few more tokens."""
    config = ModelConfig(**{name: getattr(CONFIG, name) for name in CONFIG.__slots__} | changes)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = DeepSeekV3(config).initialize().bfloat16()
        for tensor in model.parameters():
            tensor.data *= 4 if tensor.dim() > 1 else 1
        for gate in model.gates():
            gate.e_score_correction_bias = torch.randn(8) / 5
    model.save(folder)
    Tokenizer.train([TEXT * 4], 340).save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("gguf") / "model")


def tensors_of(file):
    """Every tensor of a file in float32, in the order of its dimensions here."""
    return {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy())
            for t in gguf.GGUFReader(file).tensors}  # fmt: skip


@pytest.mark.parametrize("kind", ["bf16", "f32"])
def test_every_weight_is_there_to_the_bit(folder, tmp_path, kind):
    made = export(folder, tmp_path / "m.gguf", kind)
    found, opened = tensors_of(made.file), shards.opened(folder)
    assert made.tensors == len(found)

    def published(name):
        return opened.tensor(f"model.layers.{name}").float()

    assert torch.equal(
        found["token_embd.weight"], opened.tensor("model.embed_tokens.weight").float()
    )
    assert torch.equal(found["output.weight"], opened.tensor("lm_head.weight").float())
    assert torch.equal(found["blk.0.ffn_up.weight"], published("0.mlp.up_proj.weight"))
    for layer in range(4):
        both = published(f"{layer}.self_attn.kv_b_proj.weight").unflatten(0, (4, 64))
        keys, values = found[f"blk.{layer}.attn_k_b.weight"], found[f"blk.{layer}.attn_v_b.weight"]
        assert torch.equal(torch.cat([keys.transpose(1, 2), values], 1), both)
    for layer in (1, 2, 3):
        bias = published(f"{layer}.mlp.gate.e_score_correction_bias")
        assert torch.equal(found[f"blk.{layer}.exp_probs_b.bias"], bias)
        for expert in range(8):
            weight = published(f"{layer}.mlp.experts.{expert}.down_proj.weight")
            assert torch.equal(found[f"blk.{layer}.ffn_down_exps.weight"][expert], weight)
    assert torch.equal(found["blk.3.nextn.eh_proj.weight"], published("3.eh_proj.weight"))
    norm = found["blk.3.nextn.shared_head_norm.weight"]
    assert torch.equal(norm, published("3.shared_head.norm.weight"))
    # Nothing of the model is missing: its own numbers, and not the copies of embedding and head.
    plan = sum(tensor.numel() for tensor in DeepSeekV3.load(folder).state_dict().values())
    assert sum(tensor.numel() for tensor in found.values()) == plan


def test_what_the_file_says_of_the_model(folder, tmp_path):
    reader = gguf.GGUFReader(export(folder, tmp_path / "m.gguf").file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    ours = {name.removeprefix("deepseek2."): v for name, v in said.items() if "deepseek2." in name}
    assert ours == {
        "vocab_size": 350, "context_length": 256, "block_count": 4, "nextn_predict_layers": 1,
        "leading_dense_block_count": 1, "embedding_length": 64, "feed_forward_length": 96,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6), "attention.head_count": 4,
        "attention.head_count_kv": 1, "attention.kv_lora_rank": 64, "attention.q_lora_rank": 32,
        "attention.key_length": 96, "attention.value_length": 64,
        "attention.key_length_mla": 64, "attention.value_length_mla": 32,
        "expert_feed_forward_length": 32, "expert_count": 8, "expert_used_count": 3,
        "expert_shared_count": 2, "expert_group_count": 4, "expert_group_used_count": 2,
        "expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5,
        "rope.freq_base": 10000.0, "rope.dimension_count": 32, "rope.scaling.type": "yarn",
        "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_log_multiplier": pytest.approx(0.1),
    }  # fmt: skip
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "deepseek-v3")
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    tokenizer = Tokenizer.load(folder)
    for name, kind in (
        ("<think>", 4),
        ("<\uff5cUser\uff5c>", 3),
        ("[UNUSED345]", 5),
        ("\u0120d", 1),
    ):
        assert types[tokens.index(name)] == kind
    assert tokens.index("<think>") == tokenizer.control("<think>")
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert said["tokenizer.chat_template"] == template


@pytest.mark.parametrize(("kind", "step"), [("q8_0", 1 / 127), ("q4_0", 1 / 8)])
def test_fewer_bits_are_within_a_step_of_the_largest_of_32(folder, tmp_path, kind, step):
    exact = tensors_of(export(folder, tmp_path / "f32.gguf", "f32").file)
    found = tensors_of(export(folder, tmp_path / "m.gguf", kind).file)
    assert found.keys() == exact.keys()
    for name, tensor in exact.items():
        if tensor.dim() == 1 or "ffn_gate_inp" in name or "_k_b." in name or "_v_b." in name:
            assert torch.allclose(found[name], tensor, rtol=2**-8, atol=0)
            continue
        largest = tensor.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
        error = (found[name] - tensor).unflatten(-1, (-1, 32)).abs()
        assert (error <= largest * step * 1.01 + 1e-6).all(), name


def test_fp8_is_written_as_what_it_stands_for(folder, tmp_path):
    convert(folder, tmp_path / "fp8", "fp8")
    convert(tmp_path / "fp8", tmp_path / "bf16", "bf16")
    made = [export(tmp_path / name, tmp_path / f"{name}.gguf").file for name in ("fp8", "bf16")]
    one, other = (tensors_of(file) for file in made)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_export_goes_on_and_ends_with_the_same_bytes(folder, tmp_path):
    whole = export(folder, tmp_path / "whole.gguf")
    draft = tmp_path / ".m.gguf.writing" / "model.gguf"
    for turn in range(3):
        allowed = iter(range(20))

        def stop(done, total, what, allowed=allowed):
            if "already" not in what and next(allowed, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export(folder, tmp_path / "m.gguf", progress=stop)
        assert not (tmp_path / "m.gguf").exists()
        if turn == 1:  # what was written last is lost
            draft.write_bytes(draft.read_bytes()[:-5])
    made = export(folder, tmp_path / "m.gguf")
    assert 40 < made.tensors_taken_over < made.tensors
    assert made.sha256 == whole.sha256
    assert made.file.read_bytes() == whole.file.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "m.gguf"}


def test_what_llama_cpp_cannot_run_is_refused(folder, tmp_path):
    out = tmp_path / "m.gguf"
    with pytest.raises(ConfigError, match="n_shared_experts=0"):
        export(make(tmp_path / "a", n_shared_experts=0), out)
    unlike = RopeScaling(factor=8.0, original_max_position_embeddings=32, mscale_all_dim=0.5)
    with pytest.raises(ConfigError, match=r"mscale=1.0 and mscale_all_dim=0.5"):
        export(make(tmp_path / "b", rope_scaling=unlike), out)
    linear = RopeScaling(type="linear", factor=8.0, original_max_position_embeddings=32)
    with pytest.raises(ConfigError, match="type linear"):
        export(make(tmp_path / "l", rope_scaling=linear), out)
    with pytest.raises(ConfigError, match=r"rows of 40, but Q8_0 stores 32 .* --gguf-type bf16"):
        export(make(tmp_path / "c", hidden_size=40), out, "q8_0")
    mute = shutil.copytree(folder, tmp_path / "d")
    (mute / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="tokenizer"):
        export(mute, out)
    out.touch()
    with pytest.raises(CheckpointError, match="exists already"):
        export(folder, out)


def test_a_tokenizer_that_cuts_otherwise_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    file = json.loads((other / "tokenizer.json").read_text())
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}"
    (other / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(DataError, match="cuts text by other rules"):
        export(other, tmp_path / "m.gguf")


@pytest.mark.parametrize("changes", [
    {},
    {"q_lora_rank": None, "rope_scaling": None, "num_nextn_predict_layers": 0, "n_group": 1,
     "topk_group": 1, "first_k_dense_replace": 0},
])  # fmt: skip
def test_llama_cpp_reads_the_text_and_computes_the_logits(tmp_path, changes):
    """Where llama-cpp-python is installed, by hand: building it takes too long for every run."""
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = make(tmp_path / "model", **changes)
    model, tokenizer = DeepSeekV3.load(folder).float(), Tokenizer.load(folder)
    theirs = llama_cpp.Llama(
        str(export(folder, tmp_path / "m.gguf", "f32").file), n_ctx=256, n_batch=256, n_threads=1,
        logits_all=True, type_k=0, type_v=0, flash_attn=False, verbose=False,
    )  # fmt: skip
    text = TEXT.replace("<think>", "") * 3
    tokens = tokenizer.encode(text, bos=True)
    assert theirs.tokenize(text.encode(), add_bos=True, special=False) == tokens
    with torch.inference_mode():
        for _ in range(16):
            logits = model.lm_head(model(Batch.from_sequences([tokens])).hidden)
            tokens.append(int(logits[-1].argmax()))
    theirs.eval(tokens)
    found = torch.from_numpy(np.array(theirs.scores[: len(logits)]))
    torch.testing.assert_close(found, logits, atol=1e-3, rtol=1e-4)
    assert torch.equal(found.argmax(1), logits.argmax(1))
    theirs.close()
