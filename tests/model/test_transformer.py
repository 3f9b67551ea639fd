"""The whole model: its size, its memory-saving mode, its folder."""

import dataclasses

import pytest
import torch

from abyssal.batch import Batch
from abyssal.config import ModelConfig
from abyssal.model.transformer import DeepSeekV3


def size(model):
    return sum(tensor.numel() for tensor in model.state_dict().values())


def test_the_released_model_has_671_026_419_200_numbers_and_its_mtp_module_11_610_068_224():
    config = ModelConfig.preset("deepseek-v3")
    with torch.device("meta"):
        model = DeepSeekV3(config)
    mtp = size(model.mtp)
    assert size(model) - mtp == 671_026_419_200
    assert mtp == 11_610_068_224


def test_recomputing_blocks_in_the_backward_changes_no_gradient(small_model):
    gradients = []
    for recompute in (False, True):
        model = small_model(num_nextn_predict_layers=1)
        batch = Batch.from_sequences([list(range(30)), list(range(7))])
        out = model(batch, mtp=True, recompute=recompute)
        (out.hidden.sin().sum() + out.mtp_hidden[0].cos().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, grad in plain.items():
        assert (grad is None) == (recomputed[name] is None), name
        if grad is not None:
            torch.testing.assert_close(recomputed[name], grad, msg=lambda m, n=name: f"{n}: {m}")


def test_recomputing_keeps_fewer_numbers_for_the_backward(small_model):
    kept = []
    for recompute in (False, True):
        model, numbers = small_model(), [0]

        def count(tensor, numbers=numbers):
            numbers[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(Batch.from_sequences([list(range(60))]), recompute=recompute)
        kept.append(numbers[0])
    assert kept[1] < kept[0] / 4


def test_the_same_seed_initializes_the_same_model(small_config):
    first, second, third = (
        DeepSeekV3(small_config()).initialize(torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.lm_head.weight, third.lm_head.weight)


def test_initialization_draws_matrices_and_sets_gains_to_one_and_biases_to_zero(small_config):
    model = DeepSeekV3(small_config(initializer_range=0.006, hidden_size=64))
    for tensor in model.state_dict().values():
        tensor.fill_(torch.nan)
    model.initialize()
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith("e_score_correction_bias"):
            assert not tensor.any(), name
        else:
            assert float(tensor.std()) == pytest.approx(0.006, rel=0.15), name


@torch.no_grad()
def test_embeddings_given_in_place_of_tokens_are_what_the_model_reads(small_model):
    model = small_model()
    batch = Batch.from_sequences([[5, 6, 7]])
    given = dataclasses.replace(
        batch, tokens=torch.zeros_like(batch.tokens), embeds=model.embed_tokens(batch.tokens)
    )
    assert torch.equal(model.logits(given), model.logits(batch))


@torch.no_grad()
def test_a_saved_model_computes_the_same_after_loading(small_model, tmp_path):
    model = small_model(num_nextn_predict_layers=2)
    model.save(tmp_path / "model")
    again = DeepSeekV3.load(tmp_path / "model")
    assert again.config == model.config
    assert not again.training
    batch = Batch.from_sequences([list(range(20))])
    for a, b in zip(model(batch, mtp=True)[:2], again(batch, mtp=True)[:2], strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_a_loaded_model_can_be_trained(small_model, tmp_path):
    small_model().save(tmp_path / "model")
    model = DeepSeekV3.load(tmp_path / "model")
    model.logits(Batch.from_sequences([list(range(20))])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_logits_are_float32_in_any_precision(small_model):
    model = small_model().bfloat16()
    logits = model.logits(Batch.from_sequences([list(range(20))]))
    assert logits.dtype == torch.float32
    full = small_model().logits(Batch.from_sequences([list(range(20))]))
    assert torch.nn.functional.cosine_similarity(logits.flatten(), full.flatten(), 0) > 0.98
