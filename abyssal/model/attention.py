"""Multi-head latent attention: keys and values of all heads live in one small latent per token.

    [c_kv ; k_rope] = W_DKV/KR x    (C + R numbers, all that is cached)           eq. 1, 3
    k_i = [W_UK_i c_kv ; k_rope]    v_i = W_UV_i c_kv                             eq. 2, 4, 5

DeepSeek-V3 (arXiv 2412.19437), section 2.1.1. Training and scoring unfold keys and values per head.
With a cache, W_UK moves to the query's side and W_UV behind the mixture, so that attention reads
latents only:

    q . (W_UK c) = (W_UK^T q) . c        sum p (W_UV c) = W_UV (sum p c)

    T tokens    D hidden_size    H heads    N qk_nope_head_dim    R qk_rope_head_dim    V v_head_dim
    C kv_lora_rank    Q q_lora_rank
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from abyssal.config import ModelConfig
from abyssal.kernels.attention import mla_attention
from abyssal.kernels.rotary import rotate
from abyssal.model.layers import RMSNorm
from abyssal.model.rope import softmax_scale

LATENT_NORM_EPS = 1e-6  # of the two latent norms, whatever rms_norm_eps is; as released


class LatentCache(Protocol):
    """What attention asks of a cache; the engine's is one, a test's list of tensors is another."""

    def append(self, layer: int, latents: Tensor) -> None:
        """Remember the latents (T, C+R) of this pass."""

    def attend(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """q (T, H, C+R) against all its sequence has cached so far -> mixed latents (T, H, C)."""


class Span:
    """What attention needs to know of a batch: its angles, its borders and perhaps a cache."""

    def __init__(self, cos: Tensor, sin: Tensor, cu_seqlens: Tensor, cache: LatentCache | None):
        self.cos, self.sin, self.cu_seqlens, self.cache = cos, sin, cu_seqlens, cache


class MLA(nn.Module):
    """Multi-head latent attention, unfolded without a cache and absorbed with one."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.scale = softmax_scale(config)
        D, H, C, R = (config.hidden_size, config.num_attention_heads, config.kv_lora_rank,
                      config.qk_rope_head_dim)  # fmt: skip
        N, V, Q = config.qk_nope_head_dim, config.v_head_dim, config.q_lora_rank
        if Q is None:
            self.q_proj = nn.Linear(D, H * (N + R), bias=False)
        else:
            self.q_a_proj = nn.Linear(D, Q, bias=False)
            self.q_a_layernorm = RMSNorm(Q, LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(Q, H * (N + R), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(D, C + R, bias=False)
        self.kv_a_layernorm = RMSNorm(C, LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(C, H * (N + V), bias=False)
        self.o_proj = nn.Linear(H * V, D, bias=False)

    def forward(self, x: Tensor, span: Span) -> Tensor:
        """x (T, D) -> (T, D), each token attending to its own sequence so far."""
        q = self._query(x)
        c_kv, k_rope = self._latent(x)
        if span.cache is None:
            heads = self._unfolded(q, c_kv, k_rope, span)
        else:
            heads = self._absorbed(q, c_kv, k_rope, span, span.cache)
        out: Tensor = self.o_proj(heads.flatten(1))
        return out

    def _query(self, x: Tensor) -> Tensor:
        """x (T, D) -> (T, H, N+R), its last R not yet turned (eq. 6-8)."""
        cfg = self.config
        if cfg.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        heads: Tensor = q.unflatten(-1, (cfg.num_attention_heads, cfg.qk_head_dim))
        return heads

    def _latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, D) -> c_kv (T, C), normed, and k_rope (T, R), not yet turned (eq. 1, 3)."""
        cfg = self.config
        c_kv, k_rope = self.kv_a_proj_with_mqa(x).split(
            [cfg.kv_lora_rank, cfg.qk_rope_head_dim], -1
        )
        return self.kv_a_layernorm(c_kv), k_rope

    def _unfolded(self, q: Tensor, c_kv: Tensor, k_rope: Tensor, span: Span) -> Tensor:
        H = self.config.num_attention_heads
        kv = self.kv_b_proj(c_kv).unflatten(-1, (H, -1))  # (T, H, N+V)
        return mla_attention(q, kv, k_rope, span.cos, span.sin, span.cu_seqlens, self.scale)

    def _absorbed(
        self, q: Tensor, c_kv: Tensor, k_rope: Tensor, span: Span, cache: LatentCache
    ) -> Tensor:
        cfg = self.config
        w_kv = self.kv_b_proj.weight.unflatten(0, (cfg.num_attention_heads, -1))  # (H, N+V, C)
        w_uk, w_uv = w_kv.split([cfg.qk_nope_head_dim, cfg.v_head_dim], 1)
        k_rope = rotate(k_rope.unsqueeze(1), span.cos, span.sin).squeeze(1)
        cache.append(self.layer, torch.cat([c_kv, k_rope], -1))
        q_nope, q_rope = q.split([cfg.qk_nope_head_dim, cfg.qk_rope_head_dim], -1)
        q_rope = rotate(q_rope, span.cos, span.sin)
        q = torch.cat([torch.einsum("thn,hnc->thc", q_nope, w_uk), q_rope], -1)  # (T, H, C+R)
        mixed = cache.attend(self.layer, q, self.scale)  # (T, H, C)
        return torch.einsum("thc,hvc->thv", mixed, w_uv)
