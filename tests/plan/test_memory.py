"""Layouts and the memory they take: nothing is lost, and what should help helps."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.count import count
from abyssal.plan.layout import Layout, stages
from abyssal.plan.memory import largest, of_stage, parameters, plan_memory
from abyssal.plan.schedules import SCHEDULES, least_micro_batches

V3 = ModelConfig.preset("deepseek-v3")
SMALL = ModelConfig.preset("small")
PAPER = Layout(
    dp=128, pp=16, ep=64, zero=1, precision="fp8", schedule="dualpipe", recompute="norms",
    sequences=15360,
)  # fmt: skip


@st.composite
def layouts(draw) -> Layout:
    """Any that divides, of a model with 8 blocks and 32 experts."""
    schedule = draw(st.sampled_from(SCHEDULES))
    pp = draw(st.sampled_from([2, 4, 6, 8])) if "dual" in schedule else draw(st.integers(1, 8))
    ep = 2 ** draw(st.integers(0, 4))
    dp = ep * draw(st.integers(1, 3))
    micro = least_micro_batches(schedule, pp) + 2 * draw(st.integers(0, 3))
    micro += micro % 2 if schedule == "dualpipe" else 0
    return Layout(
        dp=dp, pp=pp, ep=ep, zero=draw(st.sampled_from([0, 1])), schedule=schedule,
        recompute=draw(st.sampled_from(["none", "norms", "blocks"])), sequences=dp * micro,
        precision=draw(st.sampled_from(["bfloat16", "float32", "fp8"])), seq_len=128,
    )  # fmt: skip


@given(layouts(), st.sampled_from([SMALL, replace(SMALL, num_nextn_predict_layers=0)]))
@settings(max_examples=60, deadline=None)
def test_the_stages_hold_the_whole_model_once(layout, config):
    counts = count(config)
    parts = stages(config, layout)
    assert sum(part.dense_blocks for part in parts) == config.first_k_dense_replace
    assert sum(part.dense_blocks + part.moe_blocks for part in parts) == config.num_hidden_layers
    assert all(part.dense_blocks + part.moe_blocks for part in parts)
    whole = counts.params_total + counts.params_mtp
    assert sum(of_stage(config, part).total for part in parts) == whole


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_the_devices_of_a_pipeline_hold_it_once_or_with_dualpipe_twice(layout):
    counts = count(SMALL)
    held = [parameters(SMALL, layout, rank) for rank in range(layout.ranks)]
    total = sum(part.shared + layout.ep * part.experts for part in held)
    copies = 2 if layout.schedule == "dualpipe" else 1
    whole = copies * (counts.params_total + counts.params_mtp)
    # The MTP module reads the embedding where another device has it.
    is_copied = layout.pp > 1 and not layout.schedule.startswith("dualpipe")
    assert total == whole + (counts.total.embedding if is_copied else 0)


@given(layouts(), st.sampled_from([None, "amx", "vector"]))
@settings(max_examples=60, deadline=None)
def test_zero_expert_parallelism_and_recomputation_never_take_more(layout, cpu):
    def fullest(**changes) -> int:
        return largest(SMALL, replace(layout, **changes), cpu=cpu).total

    assert fullest(zero=1) <= fullest(zero=0)
    assert fullest(ep=layout.ep) <= fullest(ep=1)
    standing = [replace(layout, recompute=name) for name in ("blocks", "norms", "none")]
    kept = [plan_memory(SMALL, one, cpu=cpu)[0].activations for one in standing]
    assert kept == sorted(kept)


@given(layouts())
@settings(max_examples=40, deadline=None)
def test_activations_grow_with_the_tokens_of_a_pass_alone(layout):
    wider = replace(layout, seq_len=2 * layout.seq_len)
    assume(layout.precision != "float32")  # where probabilities are kept, they grow faster
    one, two = (plan_memory(SMALL, each)[0].activations for each in (layout, wider))
    assert two == pytest.approx(2 * one, rel=1e-6, abs=2)
    if layout.pp > 1:
        more = replace(layout, sequences=layout.sequences + 20 * layout.dp * layout.pp)
        filled = replace(layout, sequences=layout.sequences + 4 * layout.dp * layout.pp)
        assert plan_memory(SMALL, more) == plan_memory(SMALL, filled)


def test_more_stages_take_less_of_each_device():
    fewer, more = (
        largest(V3, replace(PAPER, pp=pp, dp=2048 // pp, schedule="1f1b", sequences=2048 * 16))
        for pp in (4, 16)
    )
    assert more.weights < fewer.weights
    assert more.gradients < fewer.gradients


def test_the_papers_own_layout_takes_about_what_its_devices_have():
    memory = plan_memory(V3, PAPER)
    assert len(memory) == 16
    assert [one.total for one in memory] == [one.total for one in reversed(memory)]
    assert all(60e9 < one.total < 90e9 for one in memory)
    whole = plan_memory(V3, replace(PAPER, recompute="none"))
    assert all(kept.total > one.total for kept, one in zip(whole, memory, strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ep": 3, "dp": 4, "sequences": 4}, "ep=3 does not divide dp=4"),
        ({"dp": 3, "sequences": 4}, "take a multiple of 3"),
        ({"sequences": 0}, "sequences=0, expected at least 1"),
        ({"precision": "fp4"}, "precision='fp4', expected one of bfloat16, float32, fp8"),
        ({"zero": 2}, "zero=2, expected one of 0, 1"),
        ({"seq_len": 1}, "seq_len=1, expected at least 2"),
    ],
)
def test_what_is_no_layout_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(Layout(), **changes)


def test_a_model_that_does_not_divide_is_told_what_does():
    with pytest.raises(ConfigError, match="pp=9 stages, but the model has 8 blocks"):
        plan_memory(SMALL, Layout(pp=9, sequences=18))
    with pytest.raises(ConfigError, match=r"take one of 1, 2, 4$"):
        plan_memory(replace(SMALL, n_routed_experts=20), Layout(dp=24, ep=24, sequences=24))
