"""Our model and the one in `transformers` are one function, whichever wrote the folder."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3DecoderLayer,
    DeepseekV3RMSNorm,
)

from abyssal.batch import Batch
from abyssal.checkpoint import names
from abyssal.config import ModelConfig
from abyssal.model.rope import cos_sin
from abyssal.model.transformer import DeepSeekV3

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


class ListCache:
    """The latents of one sequence, a tensor for each layer."""

    def __init__(self, kv_lora_rank):
        self.kv_lora_rank, self.layers = kv_lora_rank, {}

    def append(self, layer, latents):
        self.layers[layer] = torch.cat([self.layers.get(layer, latents[:0]), latents])

    def attend(self, layer, q, scale):
        latents = self.layers[layer]  # (S, C+R)
        scores = torch.einsum("thc,sc->ths", q, latents) * scale
        future = torch.ones(len(q), len(latents), dtype=torch.bool).triu(len(latents) - len(q) + 1)
        weights = scores.masked_fill(future.unsqueeze(1), -torch.inf).softmax(-1)
        return torch.einsum("ths,sc->thc", weights, latents[:, : self.kv_lora_rank])


def batch_of(tokens):
    return Batch.from_sequences(tokens.tolist())


def load_theirs(folder):
    model, report = DeepseekV3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **EAGER
    )
    return model.eval(), report


@torch.no_grad()
def test_a_folder_of_theirs_gives_their_logits_here(pair):
    theirs = pair.theirs(pair.tokens).logits.flatten(0, 1)
    torch.testing.assert_close(pair.ours.logits(batch_of(pair.tokens)), theirs, **CLOSE)


@torch.no_grad()
def test_a_folder_of_ours_gives_our_logits_there(pair, tmp_path):
    pair.ours.save(tmp_path / "ours")
    theirs, report = load_theirs(tmp_path / "ours")
    assert not any(report.values())
    ours = pair.ours.logits(batch_of(pair.tokens))
    torch.testing.assert_close(theirs(pair.tokens).logits.flatten(0, 1), ours, **CLOSE)


def test_every_parameter_has_their_gradient(pair):
    labels = pair.tokens.roll(1).flatten()
    for model, logits in (
        (pair.ours, pair.ours.logits(batch_of(pair.tokens))),
        (pair.theirs, pair.theirs(pair.tokens).logits.flatten(0, 1)),
    ):
        model.zero_grad()
        F.cross_entropy(logits, labels).backward()
    theirs = {name: p.grad for name, p in pair.theirs.named_parameters()}
    for name, parameter in pair.ours.named_parameters():
        own_name = name if name in theirs else f"model.{name}"  # stacked experts, as they hold them
        if own_name in theirs:
            pieces = [((), theirs.pop(own_name))]
        else:
            parts = names.parts(name, parameter.shape, pair.ours.config)
            pieces = [(part.place, theirs.pop(part.published)) for part in parts]
        for place, grad in pieces:
            grad = torch.zeros_like(parameter[place]) if grad is None else grad
            torch.testing.assert_close(
                parameter.grad[place], grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert not theirs, "parameters we have no counterpart of"


@torch.no_grad()
def test_64_greedy_tokens_are_theirs_with_latents_only_in_our_cache(pair):
    cache, their_cache = ListCache(pair.ours.config.kv_lora_rank), DynamicCache()
    ours, theirs = pair.tokens[0, :5].tolist(), pair.tokens[0, :5].tolist()
    done = 0
    while len(ours) < 5 + 64:
        new = torch.tensor(ours[done:])
        positions = torch.arange(done, len(ours))
        batch = Batch(new, positions, torch.tensor([0, len(new)]))
        their_logits = pair.theirs(
            torch.tensor([theirs[done:]]), past_key_values=their_cache, use_cache=True
        ).logits[0, -1]
        done = len(ours)
        ours.append(int(pair.ours.logits(batch, cache)[-1].argmax()))
        theirs.append(int(their_logits.argmax()))
    assert ours == theirs


def with_mtp(pair, modules):
    """Our half of a pair with that many MTP modules on top."""
    config = dataclasses.replace(
        pair.ours.config, num_nextn_predict_layers=modules, initializer_range=0.2
    )
    model = DeepSeekV3(config).initialize()
    model.load_state_dict(pair.ours.state_dict(), strict=False)
    return model.eval()


@pytest.mark.parametrize("pair", [0, 1], indirect=True)
@torch.no_grad()
def test_a_folder_with_mtp_modules_loads_there_without_them(pair, tmp_path):
    model = with_mtp(pair, 2)
    model.save(tmp_path / "mtp")
    theirs, report = load_theirs(tmp_path / "mtp")
    L = model.config.num_hidden_layers
    surplus = set(report.pop("unexpected_keys"))
    assert surplus
    assert all(key.startswith(f"model.layers.{L}") or f".{L + 1}." in key for key in surplus)
    assert not any(report.values())
    torch.testing.assert_close(
        theirs(pair.tokens).logits.flatten(0, 1), model.logits(batch_of(pair.tokens)), **CLOSE
    )


@pytest.mark.parametrize("pair", [0, 1, 2, 3], indirect=True)
@torch.no_grad()
def test_an_mtp_module_is_their_mtp_layer(pair):
    model = with_mtp(pair, 1)
    config, tokens = model.config, pair.tokens[:1]
    their_config = DeepseekV3Config(**config.to_dict(), **EAGER)
    layer = MtpLayer(
        their_config, DeepseekV3DecoderLayer, DeepseekV3RMSNorm, config.num_hidden_layers
    ).eval()
    layer.load_state_dict(_their_mtp_names(model, layer))
    n = tokens.shape[1] - 1  # the last row has no token to come
    cos, sin = (torch.cat([x, x], -1)[None] for x in cos_sin(config, torch.arange(n)))
    mask = torch.full((n, n), -torch.inf).triu(1)[None, None]
    out = model(batch_of(tokens), mtp=True)
    theirs = layer(
        model.embed_tokens(tokens[:, 1:]), out.hidden[None, :n], (cos, sin), mask, None, None
    )
    torch.testing.assert_close(out.mtp_hidden[0][:n], theirs[0], **CLOSE)


def _their_mtp_names(model, layer):
    tensors = {}
    theirs = layer.state_dict()
    for name, tensor in model.mtp[0].state_dict().items():
        prefixed = name.replace("block.", "mtp_block.")
        prefixed = "post_norm.weight" if name == "norm.weight" else prefixed
        if prefixed in theirs:
            tensors[prefixed] = tensor
        else:  # a SwiGLU they hold in two
            gate, up = tensor.chunk(2)
            tensors[prefixed.replace("gate_up_proj", "gate_proj")] = gate
            tensors[prefixed.replace("gate_up_proj", "up_proj")] = up
    return tensors


def test_a_config_of_ours_survives_a_trip_through_theirs(tmp_path, pair):
    DeepseekV3Config(**pair.ours.config.to_dict()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "deepseek_v3"
    assert ModelConfig.load(tmp_path) == pair.ours.config
