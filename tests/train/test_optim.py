"""AdamW against torch's, Muon against its own definition, and the bookkeeping around both."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.train.optim import Optim, Optimizer, orthogonalize

KINDS = [
    (matrices, moments) for matrices in ("adamw", "muon") for moments in ("bfloat16", "float32")
]


class Toy(nn.Module):
    """One parameter of every sort there is to move."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.embed_tokens = nn.Embedding(7, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 6, bias=False)])
        self.norm = nn.RMSNorm(6)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        return self.norm(x + self.layers[1](self.layers[0](x).relu()))


def give_gradients(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * scale
        parameter.grad = drawn.to(parameter.dtype)


def run(optimizer, model, seeds, lr=0.01):
    for seed in seeds:
        give_gradients(model, seed)
        optimizer.collect()
        optimizer.step(lr * (1 + seed % 3))


# AdamW


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs_where_vectors_do_not_decay(decay):
    ours, theirs = Toy(), Toy()
    optimizer = Optimizer(ours, Optim(weight_decay=decay, moments="float32"))
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices}]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    for seed in range(30):
        give_gradients(theirs, seed, scale=10.0 ** (seed % 3 - 3))
        give_gradients(ours, seed, scale=10.0 ** (seed % 3 - 3))
        lr = 0.01 * (1 + seed % 4)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        optimizer.collect()
        optimizer.step(lr)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_moments_in_bfloat16_lead_nearly_to_the_same_place():
    exact, rough, before = Toy(), Toy(), Toy()
    run(Optimizer(exact, Optim(moments="float32")), exact, range(50))
    run(Optimizer(rough, Optim(moments="bfloat16")), rough, range(50))
    for a, b, start in zip(
        exact.parameters(), rough.parameters(), before.parameters(), strict=True
    ):
        assert 0 < (a - b).norm() < 0.03 * (a - start).norm()


def test_steps_too_small_for_bfloat16_add_up_in_the_masters():
    model = Toy(torch.bfloat16)
    start = model.norm.weight.detach().clone()
    optimizer = Optimizer(model, Optim(moments="float32"))
    for _ in range(200):
        model.norm.weight.grad = torch.ones_like(model.norm.weight)
        optimizer.collect()
        optimizer.step(1e-4)  # AdamW moves by lr where the gradient never changes
    master = optimizer.masters["norm.weight"]
    torch.testing.assert_close(master, start.float() - 0.02, rtol=0, atol=1e-4)
    assert torch.equal(model.norm.weight, master.bfloat16())


# Muon


@pytest.mark.parametrize("shape", [(3, 8, 16), (2, 16, 8), (1, 12, 12), (4, 32, 5)])
def test_orthogonalizing_brings_every_singular_value_near_1(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.min() > 0.7
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(3, 8, 16), (3, 16, 8)])
def test_orthogonalizing_keeps_the_directions_and_forgets_the_size(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    polar, found = u @ vh, orthogonalize(matrices).float()
    cosine = (polar * found).sum((1, 2)) / polar.norm(dim=(1, 2)) / found.norm(dim=(1, 2))
    assert cosine.min() > 0.98
    torch.testing.assert_close(orthogonalize(matrices * 1e-4).float(), found, rtol=0, atol=0.05)


def test_a_batch_of_matrices_is_orthogonalized_as_one_by_one():
    matrices = torch.randn(5, 12, 20)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone, rtol=0, atol=0.02)


def test_a_lying_matrix_is_orthogonalized_as_its_standing_transpose():
    matrices = torch.randn(2, 6, 9)
    standing = orthogonalize(matrices.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(orthogonalize(matrices), standing, rtol=0, atol=0.02)


def test_a_matrix_without_gradient_stays_zero():
    assert orthogonalize(torch.zeros(2, 4, 6)).abs().max() == 0


def test_muon_is_momentum_then_orthogonalization_of_each_matrix():
    model, optim = Toy(), Optim(matrices="muon", moments="float32", weight_decay=0.1)
    optimizer = Optimizer(model, optim)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if n in optimizer.muon}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    assert weights.keys() == {"layers.0.weight", "layers.1.weight"}
    for seed in range(4):
        give_gradients(model, seed)
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.collect()
        optimizer.step(0.05)
        for name, weight in weights.items():
            momenta[name] = 0.95 * momenta[name] + grads[name]
            update = orthogonalize((grads[name] + 0.95 * momenta[name])[None])[0].float()
            scale = 0.2 * math.sqrt(max(weight.shape))
            weights[name] = weight - 0.05 * (scale * update + 0.1 * weight)
    for name, weight in weights.items():
        torch.testing.assert_close(optimizer.masters[name], weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (3, 24, 8)])
def test_an_update_of_muon_is_as_large_as_one_of_adamw(shape):
    model = nn.Module()
    model.layers = nn.ParameterList([nn.Parameter(torch.zeros(shape))])
    optimizer = Optimizer(model, Optim(matrices="muon", weight_decay=0.0))
    give_gradients(model, 1)
    optimizer.collect()
    optimizer.step(1.0)
    size = model.layers[0].square().mean().sqrt().item()
    assert 0.15 < size < 0.25  # AdamW's updates are about 0.2 to 0.4 in practice (arXiv 2502.16982)


def test_stacked_experts_move_as_if_each_stood_alone():
    stacked, alone = nn.Module(), nn.Module()
    stacked.layers = nn.ParameterList([nn.Parameter(torch.zeros(3, 4, 6))])
    alone.layers = nn.ParameterList([nn.Parameter(torch.zeros(4, 6)) for _ in range(3)])
    give_gradients(stacked, 1)
    for matrix, grad in zip(alone.layers, stacked.layers[0].grad, strict=True):
        matrix.grad = grad.clone()
    for model in (stacked, alone):
        optimizer = Optimizer(model, Optim(matrices="muon"))
        optimizer.collect()
        optimizer.step(0.1)
    torch.testing.assert_close(stacked.layers[0], torch.stack(list(alone.layers)))


def test_muon_moves_the_matrices_of_blocks_and_nothing_else():
    config = ModelConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=12, num_nextn_predict_layers=1, num_attention_heads=2, q_lora_rank=4,
        kv_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=6, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=16,
    )  # fmt: skip
    optimizer = Optimizer(DeepSeekV3(config).initialize(), Optim(matrices="muon"))
    assert {"mtp.0.eh_proj.weight", "mtp.0.block.mlp.experts.down_proj"} <= optimizer.muon
    assert "layers.0.mlp.gate_up_proj.weight" in optimizer.muon
    others = optimizer.masters.keys() - optimizer.muon
    assert {"embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight"} <= others
    assert all(
        "norm" in n or n.split(".")[-2] in ("embed_tokens", "lm_head", "gate") for n in others
    )
    assert optimizer.second.keys() == others


# Around them


@pytest.mark.parametrize(("matrices", "moments"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_bit_for_bit(matrices, moments, dtype):
    optim = Optim(matrices=matrices, moments=moments)
    through, broken, resumed = Toy(dtype), Toy(dtype), Toy(dtype)
    run(Optimizer(through, optim), through, range(8))
    first = Optimizer(broken, optim)
    run(first, broken, range(5))
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second = Optimizer(resumed, optim)
    run(second, resumed, range(20, 23))  # whatever it was before is forgotten
    second.restore(saved, first.steps)
    for restored, original in zip(resumed.parameters(), broken.parameters(), strict=True):
        assert torch.equal(restored, original)
    run(second, resumed, range(5, 8))
    for restored, original in zip(resumed.parameters(), through.parameters(), strict=True):
        assert torch.equal(restored, original)


@pytest.mark.parametrize(("matrices", "moments"), KINDS)
def test_every_parameter_moves_and_stays_finite(matrices, moments):
    model, before = Toy(), Toy()
    optimizer = Optimizer(model, Optim(matrices=matrices, moments=moments))
    run(optimizer, model, range(3))
    for moved, start in zip(model.parameters(), before.parameters(), strict=True):
        assert moved.isfinite().all()
        assert not torch.equal(moved, start)
    assert all(not grad.any() for grad in optimizer.grads.values())


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch():
    ids = torch.arange(28).reshape(4, 7) % 7
    whole, parts = Toy(), Toy()
    optimizers = [Optimizer(model, Optim()) for model in (whole, parts)]
    whole(ids).square().sum().backward()
    optimizers[0].collect()
    for row in ids:
        parts(row).square().sum().backward()
        optimizers[1].collect()
        assert all(parameter.grad is None for parameter in parts.parameters())
    for name, grad in optimizers[0].grads.items():
        torch.testing.assert_close(optimizers[1].grads[name], grad, rtol=1e-4, atol=1e-4)


def test_the_gradients_of_one_pass_are_not_copied():
    model = Toy(torch.bfloat16)
    optimizer = Optimizer(model, Optim())
    give_gradients(model, 1)
    places = {name: p.grad.data_ptr() for name, p in model.named_parameters()}
    optimizer.collect()
    assert {name: g.data_ptr() for name, g in optimizer._collected.items()} == places


def test_gradients_are_added_in_float32_even_of_a_bfloat16_model():
    model = Toy(torch.bfloat16)
    optimizer = Optimizer(model, Optim())
    for value in (1.0, *[2.0**-9] * 512):  # each of the 512 would vanish beside 1 in BF16
        model.norm.weight.grad = torch.full_like(model.norm.weight, value)
        optimizer.collect()
    assert torch.equal(optimizer.grads["norm.weight"], torch.full((6,), 2.0))


@given(st.floats(1e-3, 1e3))
def test_clipping_is_torchs(limit):
    ours, theirs = Toy(), Toy()
    optimizer = Optimizer(ours, Optim(clip_norm=limit))
    give_gradients(ours, 3)
    give_gradients(theirs, 3)
    optimizer.collect()
    norm = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    assert optimizer.clip() == pytest.approx(norm.item())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(optimizer.grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("matrices", "moments"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_step_moves_by_the_clipped_gradients(matrices, moments, dtype, passes):
    clipped, given = Toy(dtype), Toy(dtype)
    optimizers = [Optimizer(model, Optim(matrices=matrices, moments=moments, clip_norm=0.25))
                  for model in (clipped, given)]  # fmt: skip
    for seed in range(3):
        for one in range(passes):
            give_gradients(clipped, passes * seed + one)
            optimizers[0].collect()
        assert optimizers[0].clip() > 0.25
        for name, parameter in given.named_parameters():
            parameter.grad = None
            optimizers[1]._collected[name] = optimizers[0].grads[name]
        for optimizer in optimizers:
            optimizer.step(0.01)
    for a, b in zip(clipped.parameters(), given.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_of_a_broken_gradient_says_so_and_clearing_forgets_it(value):
    model = Toy()
    optimizer = Optimizer(model, Optim())
    give_gradients(model, 1)
    model.norm.weight.grad[2] = value
    optimizer.collect()
    assert not math.isfinite(optimizer.clip())
    optimizer.clear()
    assert optimizer.clip() == 0.0


@pytest.mark.parametrize(
    ("values", "named"),
    [({"lr": 0.0}, "lr=0.0"), ({"lr": math.nan}, "lr=nan"), ({"eps": -1e-8}, "eps=-1e-08"),
     ({"clip_norm": math.inf}, "clip_norm=inf"), ({"weight_decay": -0.1}, "weight_decay=-0.1"),
     ({"warmup_steps": -1}, "warmup_steps=-1"), ({"betas": (0.9, 1.0)}, r"betas=\[0.9, 1.0\]"),
     ({"momentum": 1.5}, "momentum=1.5")],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(values, named):
    with pytest.raises(ConfigError, match=named):
        Optim(**values)
