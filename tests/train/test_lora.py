"""Adapters: what they compute, what they leave alone, what is published, and how a run resumes."""

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from abyssal.batch import Batch
from abyssal.checkpoint import shards, state
from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import lora
from abyssal.train.lora import Lora, attach, merged

BATCH = Batch.from_sequences([[5, 6, 7, 8, 9], [3, 4, 5]])
LORA = {"lora": {"rank": 2, "alpha": 6.0}}


@pytest.fixture
def adapted(base):
    """A model whose adapters are no longer zero."""
    model = DeepSeekV3.load(base)
    attach(model, Lora(rank=3, alpha=6.0), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


def test_new_adapters_change_nothing(base):
    model = DeepSeekV3.load(base)
    before = model.logits(BATCH)
    attach(model, Lora(), seed=1)
    assert torch.equal(model.logits(BATCH), before)


def test_a_linear_layer_is_the_frozen_one_plus_the_thin_product(adapted, base):
    layer = adapted.layers[0].self_attn.o_proj
    x = torch.randn(7, layer.in_features)
    adapter = layer.parametrizations.weight[0]
    frozen = DeepSeekV3.load(base).layers[0].self_attn.o_proj
    beside = frozen(x) + (6.0 / 3) * F.linear(F.linear(x, adapter.lora_A), adapter.lora_B)
    torch.testing.assert_close(layer(x), beside)


def test_every_routed_expert_has_a_product_of_its_own(adapted, base):
    experts = adapted.layers[1].mlp.experts
    frozen = DeepSeekV3.load(base).layers[1].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        adapter = experts.parametrizations[name][0]
        for e in range(len(adapter.lora_A)):
            delta = 2.0 * adapter.lora_B[e] @ adapter.lora_A[e]
            torch.testing.assert_close(getattr(experts, name)[e], getattr(frozen, name)[e] + delta)


def test_merged_is_unmerged(adapted, tmp_path):
    lora.save(adapted, tmp_path / "model")
    published = DeepSeekV3.load(tmp_path / "model")
    torch.testing.assert_close(published.logits(BATCH), adapted.logits(BATCH), rtol=1e-5, atol=1e-5)
    assert published.state_dict().keys() == merged(adapted).keys()


def test_the_adapter_alone_has_pefts_names_and_makes_the_published_model_of_the_base(
    adapted, base, tmp_path
):
    lora.save(adapted, tmp_path / "model")
    folder = tmp_path / "model" / lora.ADAPTER
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    tensors = load_file(folder / "adapter_model.safetensors")
    before, after = shards.opened(base), shards.opened(tmp_path / "model")
    names = {name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name}
    assert "base_model.model.model.layers.1.mlp.experts.3.up_proj" in names
    assert "base_model.model.model.layers.0.self_attn.kv_a_proj_with_mqa" in names
    assert "base_model.model.model.layers.1.mlp.shared_experts.down_proj" in names
    assert len(tensors) == 2 * len(names)
    for published in before.stored:
        module = f"base_model.model.{published.removesuffix('.weight')}"
        inside = re.fullmatch(config["target_modules"], published.removesuffix(".weight"))
        assert bool(inside) == (module in names), published
        expected = before.tensor(published)
        if module in names:
            A, B = (tensors[f"{module}.lora_{x}.weight"] for x in "AB")
            assert A.shape == (3, expected.shape[1])
            expected = expected + (config["lora_alpha"] / config["r"]) * B @ A
        torch.testing.assert_close(after.tensor(published), expected, msg=published)


@pytest.mark.parametrize(
    ("target", "inside"),
    [("attention", "self_attn"), ("experts", "mlp.experts"), ("shared", "shared_experts")],
)
def test_only_the_matrices_of_the_target_learn(base, target, inside):
    model = DeepSeekV3.load(base)
    attach(model, Lora(targets=(target,)), seed=1)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning
    assert all(inside in name and "lora_" in name for name in learning)
    model(BATCH).hidden.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in learning), name
        if name.endswith("lora_B"):
            assert parameter.grad.any(), name


def test_optimizer_and_states_hold_adapters_and_nothing_else(tune, stop):
    training = tune("sft", LORA)
    stop(training, 4)
    saved = state.latest(training.folder / "trainer")
    kinds = {name.rsplit(".", 1)[-1] for name in saved.tensors if not name.startswith("bias.")}
    assert kinds == {"lora_A", "lora_B"}
    assert all(t.dtype == torch.float32 for n, t in saved.tensors.items() if "masters" in n)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_dropped_goes_on_bit_for_bit(tune, look, drop, stage, precision):
    changes = {**LORA, "precision": precision}
    whole = tune(stage, changes, out="whole")
    list(whole.steps())
    drop(tune(stage, changes), 7)
    resumed = tune(stage, changes)
    list(resumed.steps())
    ours, theirs = look(resumed.folder), look(whole.folder)
    assert ours.weights == theirs.weights
    assert ours.figures == theirs.figures
    adapters = [
        f / lora.ADAPTER / "adapter_model.safetensors" for f in (resumed.folder, whole.folder)
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_what_is_no_target_is_published_as_it_was(tune, base, look):
    training = tune("sft", {"lora": {"targets": ["attention"]}})
    rows = list(training.steps())
    assert rows[-1].loss < rows[0].loss
    before, after = look(base).weights, look(training.folder).weights
    moved = {name for name in before if before[name] != after[name]}
    assert moved
    assert all("self_attn" in name and "norm" not in name for name in moved)


def test_in_bfloat16_the_folder_is_what_was_trained(base, tmp_path):
    model = DeepSeekV3.load(base).bfloat16()
    attach(model, Lora(rank=2), seed=1)
    for adapter in (m for m in model.modules() if isinstance(m, lora.LowRank)):
        assert adapter.lora_A.dtype == adapter.lora_B.dtype == torch.float32
        adapter.lora_B.data.normal_(0, 0.1)
    lora.save(model, tmp_path / "model")
    assert torch.equal(DeepSeekV3.load(tmp_path / "model").logits(BATCH), model.logits(BATCH))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 0}}, "rank=0"),
        ({"lora": {"alpha": math.inf}}, "alpha=inf"),
        ({"lora": {"targets": []}}, "expected some of attention, experts, shared"),
        ({"lora": {"targets": ["experts", "experts"]}}, "each once"),
        ({**LORA, "balance": {"gamma": [{"until": 1, "to": 0.01}]}}, "the model stays as it is"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tune, changes, message):
    with pytest.raises(ConfigError, match=message):
        tune("sft", changes)
