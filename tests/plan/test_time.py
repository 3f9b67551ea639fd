"""Step times, costs, serving and the search: laws, and the published sums."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan import cost, pipeline, serving
from abyssal.plan.hardware import ACCELERATORS, accelerator
from abyssal.plan.layout import Layout
from abyssal.plan.measured import Measured
from abyssal.plan.memory import largest
from abyssal.plan.search import search
from abyssal.plan.time import chunk_times, plan_time
from abyssal.plan.training import plan_training

V3, SMALL = ModelConfig.preset("deepseek-v3"), ModelConfig.preset("small")
H800 = accelerator("h800")
PAPER = Layout(
    dp=128, pp=16, ep=64, zero=1, precision="fp8", schedule="dualpipe", recompute="norms",
    sequences=15360,
)  # fmt: skip
RATES = Measured(
    seq_len=512, dense_forward_s=1e-6, dense_backward_s=2e-6, moe_forward_s=2e-6,
    moe_backward_s=4e-6, ends_s=5e-6, peak_s=1e-12, product_s=2e-12, core_s=5e-12, row_s=1e-10,
    step_s=1e-10, sum_s=1e-9, gather_s=1e-9, copy_s=5e-10,
)  # fmt: skip
THIS = replace(
    H800, name="this", peak_flops={"bfloat16": 4e11}, cpu="vector", measured={"bfloat16": RATES}
)


def test_a_step_is_never_shorter_than_its_arithmetic_at_the_peak():
    for schedule in ("1f1b", "zb1p", "dualpipe"):
        time = plan_time(V3, replace(PAPER, schedule=schedule, precision="bfloat16"), H800)
        assert time.mfu < 0.7
    assert plan_time(V3, PAPER, H800, efficiency=1.0).total_s < plan_time(V3, PAPER, H800).total_s


def test_schedules_are_ranked_as_in_the_report():
    one, zero, dual = (
        plan_time(V3, replace(PAPER, schedule=schedule), H800).total_s
        for schedule in ("1f1b", "zb1p", "dualpipe")
    )
    assert one > zero > dual


def test_a_long_step_is_extended_as_if_it_were_simulated():
    few = replace(PAPER, sequences=128 * 52)  # the most that is simulated
    more = replace(PAPER, sequences=128 * 60)
    times, _ = chunk_times(V3, more, H800)
    whole = pipeline.simulate("dualpipe", 16, 60, times).span
    planned = plan_time(V3, more, H800)
    assert planned.compute_s + planned.waiting_s == pytest.approx(whole, rel=1e-3)
    assert plan_time(V3, few, H800).total_s < planned.total_s


@given(st.integers(1, 4), st.sampled_from(["none", "blocks"]))
def test_on_a_measured_machine_micro_batches_and_recomputation_only_add(micro, recompute):
    layout = Layout(sequences=8, micro_sequences=8, seq_len=512)
    base = plan_time(SMALL, layout, THIS).total_s
    other = replace(layout, micro_sequences=8 // micro if 8 % micro == 0 else 8)
    assert plan_time(SMALL, other, THIS).total_s >= base
    assert plan_time(SMALL, replace(layout, recompute=recompute), THIS).total_s >= base


def test_two_processes_share_the_work_and_pay_for_gradients():
    one = plan_time(SMALL, Layout(sequences=8, micro_sequences=4, seq_len=512), THIS)
    two = plan_time(SMALL, Layout(dp=2, sequences=8, micro_sequences=4, seq_len=512), THIS)
    assert two.compute_s == pytest.approx(one.compute_s / 2)
    assert (one.gradients_s, two.gradients_s > 0) == (0, True)
    alone = replace(THIS, measured={"bfloat16": replace(RATES, sum_s=None)})
    with pytest.raises(ConfigError, match="processes send each other was not measured"):
        plan_time(SMALL, Layout(dp=2, sequences=2, seq_len=512), alone)
    with pytest.raises(ConfigError, match="not measured in float32"):
        plan_time(SMALL, Layout(precision="float32"), THIS)


def test_a_measured_machine_is_planned_from_its_parts():
    layout = Layout(sequences=4, micro_sequences=4, seq_len=512)
    L, dense = SMALL.num_hidden_layers, SMALL.first_k_dense_replace
    mtp = SMALL.num_nextn_predict_layers
    blocks = dense * 3e-6 + (L - dense + mtp) * 6e-6
    joined = mtp * 3 * 4 * SMALL.hidden_size**2 * 2e-12
    step = plan_time(SMALL, layout, THIS)
    assert step.compute_s == pytest.approx(2048 * (blocks + joined + (1 + mtp) * 5e-6))
    # Two thirds of a longer pass are backward, and only attention is longer by itself.
    more = plan_time(SMALL, replace(layout, seq_len=1024), THIS).compute_s / 4096
    core = 3 * 5e-12 * 512 * SMALL.num_attention_heads * (SMALL.qk_head_dim + SMALL.v_head_dim)
    assert more - step.compute_s / 2048 == pytest.approx((L + mtp) * core)


def test_all_blocks_are_computed_again_but_for_those_of_mtp():
    layout = Layout(sequences=4, micro_sequences=4, seq_len=512)
    again = plan_time(SMALL, replace(layout, recompute="blocks"), THIS).compute_s
    dense = SMALL.first_k_dense_replace
    forward = dense * 1e-6 + (SMALL.num_hidden_layers - dense) * 2e-6
    assert again - plan_time(SMALL, layout, THIS).compute_s == pytest.approx(2048 * forward)


def test_the_table_of_hardware_says_what_it_does_not_know():
    with pytest.raises(ConfigError, match="A100 has no fp8 arithmetic"):
        plan_time(SMALL, Layout(precision="fp8"), ACCELERATORS["A100"])
    with pytest.raises(ConfigError, match="nobody states how fast H20 sends inter node"):
        plan_time(V3, replace(PAPER, precision="bfloat16"), ACCELERATORS["H20"])
    with pytest.raises(ConfigError, match="expected one of H800, H100"):
        accelerator("TPU")
    for one in ACCELERATORS.values():
        assert one.bandwidth > 1e12
        assert one.peak("bfloat16") > one.peak("float32")


# Costs


def test_the_reports_table_of_costs():
    table = cost.published()
    hours = [round(one.device_hours / 1e3) for one in table.values()]
    assert hours == [2664, 119, 5, 2788]
    assert [round(one.dollars / 1e3) for one in table.values()] == [5328, 238, 10, 5576]
    assert pytest.approx(2 * 62.9e9, rel=1e-3) == cost.EXTENSION_TOKENS


def test_every_stage_costs_something_and_the_longer_context_more():
    pretrained = plan_training(V3, PAPER, H800)
    assert pretrained.costs["pretrain"].tokens == 14.8e12
    extended = plan_training(V3, PAPER, H800, stage="extend").costs
    assert extended["both"].device_hours == pytest.approx(
        extended["32K"].device_hours + extended["128K"].device_hours
    )
    assert extended["128K"].device_hours > extended["32K"].device_hours
    tuned = plan_training(V3, PAPER, H800, stage="sft", tokens=1e9).costs["sft"]
    rewarded = plan_training(V3, PAPER, H800, stage="rl", tokens=1e9).costs["rl"]
    assert rewarded.device_hours > tuned.device_hours  # the answers are written first
    with pytest.raises(ConfigError, match="tokens of stage sft; give --tokens"):
        plan_training(V3, PAPER, H800, stage="sft")


# Serving


def test_the_published_service_closes():
    assert serving.service_cost() == 87_072
    assert serving.service_revenue() == pytest.approx(562_027, rel=1e-3)
    assert 1e3 * serving.step_bound_s(50e9) == pytest.approx(14.76, abs=0.01)
    assert [serving.UNITS[name].slots_per_device for name in ("prefill", "decode")] == [9, 2]


@given(st.integers(128, 1 << 17), st.sampled_from([16, 32, 64, 144, 320]))
@settings(deadline=None)
def test_users_of_a_device_fit_beside_its_weights(context, devices):
    unit = serving.unit_for(V3, devices)
    assert unit.slots >= V3.n_routed_experts
    found = serving.plan_serving(V3, H800, unit, context=context)
    usable = 0.9 * H800.memory_bytes
    taken = found.weight_bytes + found.users_per_device * found.cache_bytes_per_user
    left = usable - taken
    assert left >= 0
    assert left < found.cache_bytes_per_user
    assert found.step_s == max(found.memory_s, found.arithmetic_s, found.network_s)
    assert found.cache_bytes_per_user == 70_272 * context


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="serve over more devices"):
        serving.plan_serving(V3, H800, serving.unit_for(V3, 4))
    with pytest.raises(ConfigError, match="100000 users"):
        serving.plan_serving(V3, H800, serving.UNITS["decode"], batch=100_000)


# Search


def test_what_is_found_fits_and_is_sorted():
    like = Layout(precision="fp8", sequences=512)
    found = search(ModelConfig.preset("deepseek-v3-16b"), H800, 16, like)
    assert found
    for one in found:
        assert one.layout.devices == 16
        assert one.memory == largest(ModelConfig.preset("deepseek-v3-16b"), one.layout)
        assert one.memory.total <= 0.9 * H800.memory_bytes
    speeds = [one.time.tokens_per_s for one in found]
    assert speeds == sorted(speeds, reverse=True)


def test_a_search_without_result_says_what_it_would_take():
    with pytest.raises(ConfigError, match=r"no layout of 2 H800 fits 72 GB .* least is"):
        search(V3, H800, 2, Layout(precision="fp8", sequences=8))
