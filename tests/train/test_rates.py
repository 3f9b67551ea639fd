"""What the planner is told of this machine: each kind of work at some rate, in both precisions."""

import dataclasses
import math

import pytest

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.parallel.ranks import Ranks
from abyssal.plan.layout import Layout
from abyssal.plan.time import plan_time
from abyssal.train import rates

TINY = ModelConfig.preset("tiny")
BETWEEN = {"sum_bytes", "gather_bytes", "copy_bytes"}


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    monkeypatch.setattr(rates, "LEAST_S", 0.0)
    monkeypatch.setattr(rates, "PARAMETERS", 1 << 12)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_all_kinds_of_work_have_a_rate_and_make_a_plan(precision):
    machine = rates.this_machine(TINY, precision, 64, 2)
    found = dataclasses.asdict(machine.rates[precision])
    assert {name for name, rate in found.items() if rate is None} == BETWEEN
    assert all(0 < rate < math.inf for name, rate in found.items() if name not in BETWEEN)
    step = plan_time(TINY, Layout(precision=precision, seq_len=64), machine)
    assert 0 < step.total_s < math.inf
    assert machine.memory_bytes > 1e8


def test_a_precision_without_kernels_of_its_own_is_refused():
    with pytest.raises(ConfigError, match=r"'fp8' is not measured .* bfloat16, float32"):
        rates.measure_rates(TINY, "fp8", 64, 1, Ranks())
