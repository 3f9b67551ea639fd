"""What the planner is told of this machine: the time of each part of a step, in both precisions."""

import dataclasses
import math

import pytest

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.layout import Layout
from abyssal.plan.time import plan_time
from abyssal.train import rates, short_model

TINY = ModelConfig.preset("tiny")
BETWEEN = {"sum_s", "gather_s", "copy_s"}


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    for module in (rates, short_model):
        monkeypatch.setattr(module, "LEAST_S", 0.0)
        monkeypatch.setattr(module, "FEWEST", 2)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_every_part_of_a_step_takes_its_time_and_makes_a_plan(precision):
    machine = rates.this_machine(TINY, precision, 64, 2)
    found = dataclasses.asdict(machine.measured[precision])
    assert {name for name, seconds in found.items() if seconds is None} == BETWEEN
    assert all(0 < found[name] < math.inf for name in found.keys() - BETWEEN)
    step = plan_time(TINY, Layout(precision=precision, seq_len=64), machine)
    assert 0 < step.total_s < math.inf
    assert machine.memory_bytes > 1e8


def test_two_processes_measure_what_they_send_each_other():
    machine = rates.this_machine(TINY, "bfloat16", 32, 1, processes=2)
    found = dataclasses.asdict(machine.measured["bfloat16"])
    assert all(0 < seconds < math.inf for seconds in found.values())
    for zero in (0, 1):
        step = plan_time(TINY, Layout(dp=2, zero=zero, sequences=2, seq_len=32), machine)
        assert 0 < step.gradients_s < step.total_s < math.inf


@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_too_wide_for_this_machine_is_refused_before_it_is_built(processes):
    with pytest.raises(ConfigError, match=r"2 blocks .* GB to train, but a process has .* here"):
        rates.this_machine(ModelConfig.preset("deepseek-v3"), "bfloat16", 64, 1, processes)


def test_a_precision_without_kernels_of_its_own_is_refused():
    with pytest.raises(ConfigError, match=r"'fp8' is not measured .* bfloat16, float32"):
        rates.this_machine(TINY, "fp8", 64, 1)
