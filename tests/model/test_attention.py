"""Latent attention: absorbed with a cache, unfolded without, and the same either way."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abyssal.batch import Batch
from abyssal.model.attention import MLA, Span
from abyssal.model.rope import cos_sin

CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def piece(tokens, start, end):
    """One sequence's tokens from start to end, as a batch that continues it."""
    return Batch(tokens[start:end], torch.arange(start, end), torch.tensor([0, end - start]))


@pytest.mark.parametrize("q_lora_rank", [None, 12])
@pytest.mark.parametrize("rope_scaling", ["yarn", None])
@pytest.mark.parametrize("chunks", [[23], [1] * 23, [5, 1, 1, 10, 6]])
@torch.no_grad()
def test_absorbed_equals_unfolded(small_model, cache, q_lora_rank, rope_scaling, chunks):
    changes = {} if rope_scaling else {"rope_scaling": None}
    model = small_model(q_lora_rank=q_lora_rank, **changes)
    tokens = torch.randint(61, (23,))
    unfolded = model(piece(tokens, 0, 23)).hidden
    absorbed, start = [], 0
    for size in chunks:
        absorbed.append(model(piece(tokens, start, start + size), cache).hidden)
        start += size
    torch.testing.assert_close(torch.cat(absorbed), unfolded, **CLOSE)


@torch.no_grad()
def test_the_cache_holds_latents_and_one_rotary_key_and_nothing_else(small_model, cache):
    model = small_model()
    model(piece(torch.arange(9), 0, 9), cache)
    assert sorted(cache.layers) == [0, 1, 2]
    assert {tuple(latents.shape) for latents in cache.layers.values()} == {(9, 10 + 6)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=5))
@torch.no_grad()
def test_sequences_packed_in_a_batch_give_what_they_give_apart(small_model, lengths):
    model = small_model()
    sequences = [torch.randint(61, (length,)).tolist() for length in lengths]
    packed = model.logits(Batch.from_sequences(sequences))
    apart = [model.logits(Batch.from_sequences([sequence])) for sequence in sequences]
    torch.testing.assert_close(packed, torch.cat(apart), **CLOSE)


@torch.no_grad()
def test_a_token_changes_itself_and_what_follows_and_nothing_before(small_model):
    model = small_model()
    tokens = torch.randint(61, (2, 20))
    other = tokens.clone()
    other[0, 11] = (other[0, 11] + 1) % 61
    before, after = (model.logits(Batch.from_sequences(t.tolist())) for t in (tokens, other))
    changed = (before != after).any(-1).view(2, 20)
    assert not changed[0, :11].any()
    assert changed[0, 11:].all()
    assert not changed[1].any()


@torch.no_grad()
def test_attention_is_the_papers_equations_token_by_token(small_config):
    config = small_config(rope_scaling=None)
    mla = MLA(config, 0)
    with torch.no_grad():
        for parameter in mla.parameters():
            parameter.normal_(0, 0.3)
    x, positions = torch.randn(7, config.hidden_size), torch.arange(7)
    cos, sin = cos_sin(config, positions)
    found = mla(x, Span(cos, sin, torch.tensor([0, 7]), None))
    torch.testing.assert_close(found, by_the_paper(mla, config, x), **CLOSE)


def by_the_paper(mla, config, x):
    """Eq. 1-11 with loops; rotation in complex numbers, neighbors making a pair."""
    H, N, R = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    C, V = config.kv_lora_rank, config.v_head_dim

    def turn(vector, t):
        frequency = config.rope_theta ** (-torch.arange(0, R, 2) / R)
        pairs = torch.view_as_complex(vector.reshape(-1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones(R // 2), t * frequency)).flatten()

    def norm(vector, gain):
        return vector / (vector.square().mean() + 1e-6).sqrt() * gain

    q, k, v = [], [], []
    for t, h in enumerate(x):
        c_q = norm(mla.q_a_proj.weight @ h, mla.q_a_layernorm.weight)  # eq. 6
        heads = (mla.q_b_proj.weight @ c_q).view(H, N + R)  # eq. 7, 8
        q.append([torch.cat([head[:N], turn(head[N:], t)]) for head in heads])  # eq. 9
        down = mla.kv_a_proj_with_mqa.weight @ h  # eq. 1, 3
        k_rope = turn(down[C:], t)
        c_kv = norm(down[:C], mla.kv_a_layernorm.weight)
        heads = (mla.kv_b_proj.weight @ c_kv).view(H, N + V)  # eq. 2, 5
        k.append([torch.cat([head[:N], k_rope]) for head in heads])  # eq. 4
        v.append([head[N:] for head in heads])
    rows = []
    for t in range(len(x)):
        mixed = []
        for i in range(H):
            scores = torch.stack([q[t][i] @ k[j][i] for j in range(t + 1)]) / (N + R) ** 0.5
            mixed.append(scores.softmax(0) @ torch.stack([v[j][i] for j in range(t + 1)]))  # eq. 10
        rows.append(mla.o_proj.weight @ torch.cat(mixed))  # eq. 11
    return torch.stack(rows)
