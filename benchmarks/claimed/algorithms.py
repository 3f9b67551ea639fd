"""Claims that are laws: routing, YaRN, GRPO, sums in FP8, drafts, pages of a cache."""

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from abyssal.config import PRESETS, ModelConfig
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.pages import PAGE
from abyssal.model.moe import Gate
from abyssal.model.rope import inverse_frequencies, softmax_scale
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import balance
from abyssal.train import grpo as policy
from abyssal.train.grpo import Objective, Taken
from claimed.row import Row, absent, exact, holds, near

V3 = PRESETS["deepseek-v3"]
TEXT = "the deep sea is dark and the fish in the deep sea see the dark\n"


def routing() -> Iterator[Row]:
    """What the bias does to a gate, and how a step moves it."""
    config = replace(PRESETS["small"], n_group=1, topk_group=1)
    torch.manual_seed(0)
    gate = Gate(config)
    torch.nn.init.normal_(gate.weight)
    x = torch.randn(256, config.hidden_size)
    plain = gate(x)
    gate.e_score_correction_bias += torch.randn(config.n_routed_experts)
    biased = gate(x)
    changed = (plain.experts.sort(-1).values != biased.experts.sort(-1).values).any(-1)
    scores = biased.affinity.gather(-1, biased.experts)
    unbiased = scores / scores.sum(-1, keepdim=True) * config.routed_scaling_factor
    yield holds("a bias changes who is chosen", bool(changed.any()))
    yield holds("... and no gate value", torch.allclose(unbiased, biased.weights, atol=1e-6))
    shifted = gate.e_score_correction_bias.clone()
    gate.e_score_correction_bias += 0.5
    same = gate(x).experts.sort(-1).values.equal(biased.experts.sort(-1).values)
    yield holds("a common shift changes nothing", same)
    gate.e_score_correction_bias.copy_(shifted)
    small = Gate(replace(config, n_routed_experts=4, num_experts_per_tok=1))
    load = torch.tensor([[8, 0, 4, 4]])  # mean 4
    balance.update_biases([small], load, 0.001)
    moved = [round(value, 6) for value in small.e_score_correction_bias.tolist()]
    yield exact(
        "b += gamma sign(mean - load)", "-0.001 0.001 0 0", " ".join(f"{b:g}" for b in moved)
    )
    before = small.e_score_correction_bias.clone()
    balance.update_biases([small], load, 0.0)
    yield holds("gamma 0 leaves it", small.e_score_correction_bias.equal(before))
    yield exact("MaxVio of 8 0 4 4", 1.0, balance.max_violation(load).item())


def yarn() -> Iterator[Row]:
    """Frequencies and scale of the released model."""
    found = inverse_frequencies(V3)
    golden = {9: 7.498942093e-2, 11: 3.900692657e-2, 16: 5.5e-3, 22: 1.778279410e-4}
    golden |= {23: 3.333803580e-5, 31: 3.333803580e-6}
    for pair, value in golden.items():
        yield near(f"frequency of pair {pair}", value, found[pair].item(), 1e-6)
    plain = replace(V3, rope_scaling=None)
    yield near("scale without", 0.0721688, softmax_scale(plain), 1e-6)
    squared = softmax_scale(V3) / softmax_scale(plain)
    yield near("mscale squared", 1.8738542, squared, 1e-7, "on the whole logit")
    yield near("scale", 0.1352338, softmax_scale(V3), 1e-6)
    original = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
    yield holds(
        "off up to the original length", torch.allclose(inverse_frequencies(plain), original)
    )


def grpo() -> Iterator[Row]:
    """The objective by hand, and two laws of its parts."""
    log = math.log
    old = torch.tensor([log(0.5)] * 3)
    now = torch.tensor([log(0.55), log(0.75), log(0.3)])
    reference = torch.tensor([log(0.55), log(0.6), log(0.6)])
    taken = Taken(now, old, reference, None, torch.tensor([0, 0, 1]))
    weight = policy.token_weights(torch.tensor([2, 1]), torch.ones(2).bool(), "output", 2)
    terms = policy.loss(taken, torch.tensor([1.0, -1.0]), weight, Objective(kl=0.1))
    # Ratios 1.1, 1.5, 0.6 gain 1.1, 1.2 (clipped) and min(-0.6, -0.8).
    by_hand = -(1.1 + 1.2) / 4 + 0.8 / 2
    distances = [0.0, 0.8 - log(0.8) - 1, 2 - log(2) - 1]
    by_hand += 0.1 * ((distances[0] + distances[1]) / 4 + distances[2] / 2)
    yield near("two outputs of two tokens and one", by_hand, terms.loss.item(), 1e-5, "by hand")
    ours = policy.advantages(torch.tensor([[3.0, 0.0, 0.0, 0.0]]), "population")[0]
    yield near("advantage of 3 among 3 0 0 0", math.sqrt(3), ours[0].item(), 1e-6)
    equal = policy.advantages(torch.full((1, 8), 0.7), "population")
    yield holds("equal rewards give no advantage", not equal.any())
    torch.manual_seed(0)
    one, other = -torch.rand(4096), -torch.rand(4096)
    yield holds("KL estimator never negative", bool((policy.k3(one, other) >= 0).all()))
    yield holds("... and 0 of equal policies", not policy.k3(one, one).any())


def fp8() -> Iterator[Row]:
    """Sums of 14 bits over 4,096 inputs: an order of magnitude, with promotion and without."""
    if importlib.util.find_spec("abyssal.kernels.fp8_product") is None:
        yield absent("error of 14-bit sums, K=4096", "nearly 2%", "no FP8 products here")
        yield absent("... promoted every 128", "far less")
        return
    product = importlib.import_module("abyssal.kernels.fp8_product")
    tiled = importlib.import_module("abyssal.kernels.fp8_tiles")
    generator = torch.Generator().manual_seed(0)
    # One scale for all inputs of a row, so that it may stay outside of the sum.
    a, b = (tiled.tiles(torch.rand(32, 4096, generator=generator), spread="tensor") for _ in "ab")
    exact_ = tiled.decode(a).double() @ tiled.decode(b).double().T
    errors = [
        float((found.double() - exact_).abs().max() / exact_.abs().max())
        for found in (product.unpromoted(a, b), product.promoted(a, b))
    ]
    said, ours = "nearly 2%", f"{errors[0]:.2%}"
    ok = 0.002 < errors[0] < 0.2
    yield Row(claim="error of 14-bit sums, K=4096", published=said, ours=ours, ok=ok, note="order")
    smaller = errors[1] < errors[0] / 5
    yield Row(
        claim="... promoted every 128", published="far less", ours=f"{errors[1]:.3%}", ok=smaller
    )


def decoding() -> Iterator[Row]:
    """Drafts change no token, and what is found in the cache comes in whole pages."""
    tokenizer = Tokenizer.train([TEXT * 4], 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2,
        first_k_dense_replace=1, intermediate_size=48, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(3)).eval()
    plain, drafting = LLM(model, tokenizer), LLM(model, tokenizer, options=EngineOptions(draft=1))
    prompts = [TEXT[i : i + 20] for i in range(0, 40, 5)]
    written = [
        [llm.generate(prompt, max_tokens=48, temperature=0.0).tokens for prompt in prompts]
        for llm in (plain, drafting)
    ]
    yield holds(
        "greedy text is the same with drafts", written[0] == written[1], "8 prompts, 48 tokens"
    )
    tokens = (tokenizer.encode(TEXT) * 20)[:200]
    first = plain.generate([tokens], max_tokens=2)[0].cached_tokens
    again = plain.generate([tokens], max_tokens=2)[0].cached_tokens
    yield exact("a prompt of 200 again, from cache", 200 // PAGE * PAGE, again)
    yield exact("... and the first time", 0, first)


def not_built() -> Iterator[Row]:
    """What the list of claims has and this package has no part for."""
    yield absent("Janus-Pro, tokens of an image", 576)
    yield absent("Janus-Pro, code shape; BOI kept in the unconditional row", "holds")
