"""Native passes of a whole model against the model itself, run by torch in float32."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abyssal.config import ModelConfig, RopeScaling
from abyssal.engine.cache import PagedCache
from abyssal.engine.native import NativeRunner, stack_of
from abyssal.engine.pages import PAGE
from abyssal.engine.runner import Reading, Runner
from abyssal.kernels import stack, stack_structures
from abyssal.model.transformer import DeepSeekV3

CPU = torch.device("cpu")
LONGEST = 220

pytestmark = pytest.mark.skipif(not stack.is_available(), reason="no native kernels here")


def config(**changes: object) -> ModelConfig:
    """Sizes that fill no vector, no panel and no tile."""
    values = {
        "vocab_size": 101, "hidden_size": 44, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "intermediate_size": 70, "num_nextn_predict_layers": 1, "num_attention_heads": 3,
        "q_lora_rank": 21, "kv_lora_rank": 37, "qk_rope_head_dim": 6, "qk_nope_head_dim": 19,
        "v_head_dim": 11, "moe_intermediate_size": 23, "n_shared_experts": 1,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 2,
        "max_position_embeddings": 512, "initializer_range": 0.15,
    }  # fmt: skip
    return ModelConfig(**values | changes)


# In a random model a rounding may send a token elsewhere; where all experts are met, it cannot.
ALL_MET = {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1}

VARIANTS = {
    "usual": config(),
    "no query rank": config(q_lora_rank=None),
    "no shared expert": config(n_shared_experts=0),
    "two shared experts": config(n_shared_experts=2),
    "all dense": config(first_k_dense_replace=3, num_nextn_predict_layers=0),
    "all routed": config(first_k_dense_replace=0),
    "weights not normed": config(norm_topk_prob=False),
    "yarn": config(rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=128)),
    "one head": config(num_attention_heads=1),
    "whole panels": config(
        hidden_size=64, kv_lora_rank=32, qk_nope_head_dim=16, v_head_dim=16, qk_rope_head_dim=16
    ),
}


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> DeepSeekV3:
    model = DeepSeekV3(config).initialize(torch.Generator().manual_seed(11))
    for name, parameter in model.named_parameters():
        if not name.endswith("gate.weight"):
            parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False)


def in_float32(model: DeepSeekV3) -> DeepSeekV3:
    twin = DeepSeekV3(model.config)
    twin.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    return twin.requires_grad_(False)


def cache_of(config: ModelConfig, dtype: torch.dtype, num_pages: int = 40) -> PagedCache:
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return PagedCache(config, num_pages, dtype, CPU, num_layers=layers)


def readings(cuts: list[list[int]], vocab_size: int) -> list[list[Reading]]:
    """Passes over sequences that are cut at these places; pages lie in no order."""
    generator = torch.Generator().manual_seed(5)
    free = (torch.randperm(38, generator=generator) + 1).tolist()
    passes: list[list[Reading]] = []
    for cut in cuts:
        tokens = torch.randint(vocab_size, (cut[-1],), generator=generator).tolist()
        pages = [free.pop() for _ in range(-(-cut[-1] // PAGE))]
        for number, (start, end) in enumerate(zip([0, *cut], cut, strict=False)):
            if number == len(passes):
                passes.append([])
            passes[number].append(Reading(tokens[start:end], pages, start))
    return passes


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def test_structures_are_those_of_the_header() -> None:
    stack_structures.check_layout()


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_float32_pass_is_the_models_own(name: str) -> None:
    chosen = VARIANTS[name]
    model = model_of(chosen)
    native = NativeRunner(stack_of(model, chosen), cache_of(chosen, torch.float32))
    torch_ = Runner(model, cache_of(chosen, torch.float32))
    cuts = [[150, 151, 152], [1, 2, 3], [64, 65, 129], [7, 8], [1]]
    for some in readings(cuts, chosen.vocab_size):
        hidden, _, experts = native.read(some, routed=True)
        expected, _, met = torch_.read(some, routed=True)
        assert experts.shape == (len(hidden), len(native.expert_load), chosen.num_experts_per_tok)
        assert torch.equal(experts.sort().values, met.sort().values.int())
        torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=2e-5)
        logits = native.logits(hidden)
        torch.testing.assert_close(logits, torch_.logits(expected), atol=2e-4, rtol=2e-4)
        if chosen.num_nextn_predict_layers:
            ahead = native.ahead(some, hidden)
            torch.testing.assert_close(ahead, torch_.ahead(some, expected), atol=3e-5, rtol=3e-5)
    assert torch.equal(native.expert_load, torch_.expert_load)


lengths = st.lists(
    st.lists(st.integers(1, LONGEST), min_size=1, max_size=4, unique=True).map(sorted),
    min_size=1,
    max_size=5,
)


@given(cuts=lengths, name=st.sampled_from(sorted(VARIANTS)))
@settings(max_examples=20)
@torch.inference_mode()
def test_any_company_and_cut_in_float32(cuts: list[list[int]], name: str) -> None:
    chosen = VARIANTS[name]
    model = model_of(chosen)
    native = NativeRunner(stack_of(model, chosen), cache_of(chosen, torch.float32))
    torch_ = Runner(model, cache_of(chosen, torch.float32))
    for some in readings(cuts, chosen.vocab_size):
        expected = torch_.read(some).hidden
        torch.testing.assert_close(native.read(some).hidden, expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("pool", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("name", ["usual", "no query rank", "two shared experts", "whole panels"])
@torch.inference_mode()
def test_bf16_weights_within_roundings(name: str, pool: torch.dtype) -> None:
    chosen = replace(VARIANTS[name], **ALL_MET)
    model = model_of(chosen, torch.bfloat16)
    native = NativeRunner(stack_of(model, chosen), cache_of(chosen, pool))
    torch_ = Runner(in_float32(model), cache_of(chosen, torch.float32))
    for some in readings([[200, 201, 202], [3, 4], [90, 130, 131]], chosen.vocab_size):
        expected = torch_.read(some).hidden
        most = 0.012 if pool is torch.bfloat16 else 0.03
        assert relative(native.read(some).hidden, expected) < most


@given(cuts=lengths, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=15)
@torch.inference_mode()
def test_fixed_bits_do_not_depend_on_company_or_cut(
    cuts: list[list[int]], dtype: torch.dtype
) -> None:
    chosen = VARIANTS["usual"]
    packed = stack_of(model_of(chosen, dtype), chosen)
    together = NativeRunner(packed, cache_of(chosen, dtype), fixed=True)
    parts: dict[tuple[int, ...], list[Tensor]] = {}
    whole: dict[tuple[int, ...], Reading] = {}
    for some in readings(cuts, chosen.vocab_size):
        rows = together.read(some).hidden.split([len(reading.tokens) for reading in some])
        for reading, hidden in zip(some, rows, strict=True):
            key = tuple(reading.pages)
            parts.setdefault(key, []).append(hidden)
            before = whole[key].tokens if key in whole else []
            whole[key] = Reading([*before, *reading.tokens], reading.pages, 0)
    for key, reading in whole.items():
        alone = NativeRunner(packed, cache_of(chosen, dtype), fixed=True)
        assert torch.equal(alone.read([reading]).hidden, torch.cat(parts[key]))


@torch.inference_mode()
def test_unfolded_prompts_are_absorbed_ones_within_roundings() -> None:
    chosen = replace(VARIANTS["usual"], **ALL_MET)
    packed = stack_of(model_of(chosen, torch.bfloat16), chosen)
    runs = []
    for fixed in (False, True):
        runner = NativeRunner(packed, cache_of(chosen, torch.bfloat16), fixed=fixed)
        passes = readings([[130, 219]], chosen.vocab_size)
        runs.append(torch.cat([runner.read(some).hidden for some in passes]))
    assert not torch.equal(*runs)  # or the long way was not taken
    assert relative(*runs) < 0.012


@torch.inference_mode()
def test_sixty_four_sequences_and_more_threads_than_heads() -> None:
    chosen = VARIANTS["usual"]
    model = model_of(chosen)
    packed = stack_of(model, chosen)
    cuts = [[1 + i % 5, 2 + i % 5] for i in range(38)]
    threads = torch.get_num_threads()
    runs, routes = [], []
    for count in (1, 5):
        torch.set_num_threads(count)
        try:
            runner = NativeRunner(packed, cache_of(chosen, torch.float32))
            passes = readings(cuts, chosen.vocab_size)
            read = [runner.read(some, routed=True) for some in passes]
            runs.append(torch.cat([passed.hidden for passed in read]))
            routes.append(torch.cat([passed.experts for passed in read]))
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(*runs)
    assert torch.equal(*routes)


@torch.inference_mode()
def test_a_prompt_longer_than_a_pass_goes_on_in_the_next() -> None:
    chosen = replace(VARIANTS["usual"], max_position_embeddings=2048)
    model = model_of(chosen)
    native = NativeRunner(stack_of(model, chosen), cache_of(chosen, torch.float32))
    torch_ = Runner(model, cache_of(chosen, torch.float32))
    ((some,),) = readings([[1300]], chosen.vocab_size)
    expected, passed = torch_.read([some], routed=True), native.read([some], routed=True)
    torch.testing.assert_close(passed.hidden, expected.hidden, atol=5e-5, rtol=5e-5)
    assert torch.equal(passed.experts.sort().values, expected.experts.sort().values.int())


@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.inference_mode()
def test_experts_told_of_few_rows_and_of_many_are_those_that_were_counted(threads: int) -> None:
    chosen = VARIANTS["all routed"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runner = NativeRunner(
            stack_of(model_of(chosen), chosen), cache_of(chosen, torch.float32), fixed=True
        )
        seen = torch.zeros_like(runner.expert_load)
        for some in readings([[90, 91, 93, 97], [1, 2], [3, 5]], chosen.vocab_size):
            experts = runner.read(some, routed=True).experts.long()
            for layer, counts in enumerate(seen):
                counts += experts[:, layer].flatten().bincount(minlength=len(counts))
            assert torch.equal(seen, runner.expert_load)
    finally:
        torch.set_num_threads(before)
