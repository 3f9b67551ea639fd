"""Counts in closed form, held to the report's numbers and to the model itself."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.config import PRESETS, ModelConfig
from abyssal.model.transformer import DeepSeekV3
from abyssal.plan.count import Parts, count

V3 = count(ModelConfig.preset("deepseek-v3"))
TINY = ModelConfig.preset("tiny")


@st.composite
def configs(draw) -> ModelConfig:
    """Small models of every shape the architecture allows."""
    small = st.integers(1, 9)
    blocks, groups, per_group = draw(small), draw(st.integers(1, 4)), draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=draw(small),
        num_hidden_layers=blocks,
        first_k_dense_replace=draw(st.integers(0, blocks)),
        intermediate_size=draw(small),
        num_nextn_predict_layers=draw(st.integers(0, 2)),
        num_attention_heads=draw(small),
        q_lora_rank=draw(st.none() | small),
        kv_lora_rank=draw(small),
        qk_rope_head_dim=2 * draw(small),
        qk_nope_head_dim=draw(small),
        v_head_dim=draw(small),
        moe_intermediate_size=draw(small),
        n_shared_experts=draw(st.integers(0, 3)),
        n_routed_experts=groups * per_group,
        num_experts_per_tok=draw(st.integers(1, kept * per_group)),
        n_group=groups,
        topk_group=kept,
    )


def parts_of(config: ModelConfig) -> tuple[Parts, Parts]:
    """Main model and MTP modules, counted tensor by tensor on the actual model."""
    with torch.device("meta"):
        tensors = DeepSeekV3(config).state_dict()
    sums = {"main": dict.fromkeys(asdict(Parts()), 0), "mtp": dict.fromkeys(asdict(Parts()), 0)}
    for name, tensor in tensors.items():
        sums["mtp" if name.startswith("mtp.") else "main"][part_of(name)] += tensor.numel()
    return Parts(**sums["main"]), Parts(**sums["mtp"])


def part_of(name: str) -> str:
    known = {
        "embed_tokens": "embedding",
        "lm_head": "head",
        "self_attn": "attention",
        "shared_experts": "shared",
        "experts": "routed",
        "gate": "router",
        "mlp": "dense",
        "eh_proj": "projection",
    }
    words = name.split(".")
    return next((part for word, part in known.items() if word in words), "norms")


@given(configs())
@settings(max_examples=25)
def test_the_closed_form_counts_what_the_model_holds(config):
    counts = count(config)
    assert (counts.total, counts.mtp) == parts_of(config)


@pytest.mark.parametrize("name", PRESETS)
def test_the_closed_form_holds_for_every_preset(name):
    counts = count(ModelConfig.preset(name))
    assert (counts.total, counts.mtp) == parts_of(ModelConfig.preset(name))


@given(configs())
def test_active_is_all_when_every_expert_is_chosen(config):
    everyone = replace(
        config, topk_group=config.n_group, num_experts_per_tok=config.n_routed_experts
    )
    counts = count(everyone)
    assert counts.active == counts.total
    assert counts.mtp_active == counts.mtp


@given(configs())
def test_one_more_active_expert_costs_one_expert_per_routing_block(config):
    one = replace(config, topk_group=config.n_group, num_experts_per_tok=1)
    two = replace(one, num_experts_per_tok=2)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    blocks = config.num_hidden_layers - config.first_k_dense_replace
    assert count(two).params_active - count(one).params_active == blocks * expert


def test_deepseek_v3_has_671_billion_parameters_and_37_active():
    assert V3.params_total == 671_026_419_200
    assert V3.params_active_with_embedding == 37_552_297_472
    assert V3.params_active == 36_625_618_432
    assert V3.params_mtp == 11_610_068_224
    assert V3.mtp_active.total + V3.active.head == 1_614_779_648  # "1.5B" of README_WEIGHTS


def test_the_parts_of_deepseek_v3_are_those_of_the_released_files():
    assert asdict(V3.total) == {
        "embedding": 926_679_040,
        "head": 926_679_040,
        "attention": 61 * 187_107_328,
        "dense": 3 * 396_361_728,
        "routed": 58 * 256 * 44_040_192,
        "shared": 58 * 44_040_192,
        "router": 58 * 1_835_264,
        "norms": 61 * 14_336 + 7_168,
        "projection": 0,
    }
    assert V3.mtp.projection == 102_760_448


def test_mla_caches_71_times_less_than_unfolded_heads():
    assert V3.cache_bytes_per_token == 70_272  # arXiv 2505.09343, table 1
    assert V3.unfolded_cache_bytes_per_token == 4_997_120


def test_training_deepseek_v3_takes_250_gigaflops_a_token():
    weights, core = 6 * 36_625_618_432, 3 * 128 * (192 + 128) * 4096 * 61
    assert V3.flops_per_token_training() == weights + core
    assert round(V3.flops_per_token_training(4096) / 1e9) == 250  # arXiv 2505.09343, table 2


def test_only_the_attention_core_grows_with_the_sequence():
    one, two, four = (V3.flops_per_token_training(n * 4096) for n in (1, 2, 4))
    assert four - two == 2 * (two - one)
    assert count(ModelConfig.preset("deepseek-v3"), 8192).flops_per_token_training() == two


def test_training_mtp_adds_its_block_its_projection_and_one_more_pass_through_the_head():
    params = V3.params_active + V3.mtp_active.total + V3.active.head
    core = 3 * 128 * (192 + 128) * 4096 * 62
    assert V3.flops_per_token_training(mtp=True) == 6 * params + core
    assert count(TINY).flops_per_token_training(mtp=True) == count(TINY).flops_per_token_training()
