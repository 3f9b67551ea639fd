"""Drift of the routing: none of a model from itself, and numbers that fit together."""

import pytest
import torch

from abyssal.model.transformer import DeepSeekV3
from abyssal.train.drift import drift
from abyssal.train.metrics import read_metrics
from abyssal.train.objective import Probe
from abyssal.train.report import write_report

PROBE = Probe("crabs", [[5, 6, 7, 8, 9, 10], [3, 4, 5], [40, 41]])


def test_a_model_does_not_drift_from_itself(base):
    model = DeepSeekV3.load(base)
    found = drift(model, DeepSeekV3.load(base), PROBE, 7)
    assert (found.step, found.tokens, found.name) == (7, 11, "crabs")
    assert found.load == found.load_before
    assert found.max_violation == found.max_violation_before
    assert set(found.total_variation) == set(found.top_changed) == {0.0}
    assert [sum(row) for row in found.load] == pytest.approx([1.0] * len(found.load), abs=1e-5)


def test_a_bias_that_sends_everything_one_way_is_seen_in_every_number(base):
    before, after = DeepSeekV3.load(base), DeepSeekV3.load(base)
    (gate,) = after.gates()
    gate.e_score_correction_bias.copy_(torch.tensor([100.0, 100.0, 0.0, 0.0]))
    found = drift(before, after, PROBE, 0)
    assert found.load == ((0.5, 0.5, 0.0, 0.0),)
    assert found.max_violation == (1.0,)  # twice an even share
    lost = sum(found.load_before[0][2:])
    assert found.total_variation[0] == pytest.approx(lost, abs=1e-5)
    assert 0 <= found.top_changed[0] <= 1


def test_company_in_a_pass_changes_nothing(base):
    before, after = DeepSeekV3.load(base), DeepSeekV3.load(base)
    after.gates()[0].weight.data.add_(torch.randn(4, 32) * 0.1)
    whole = drift(before, after, PROBE, 0)
    parts = [drift(before, after, Probe("crabs", [one]), 0) for one in PROBE.sequences]
    changed = sum(part.top_changed[0] * part.tokens for part in parts)
    assert whole.top_changed[0] == pytest.approx(changed / whole.tokens)


def test_a_dense_model_has_no_routing_to_drift(tiny_dense):
    assert drift(tiny_dense, tiny_dense, PROBE, 0) is None


@pytest.fixture
def tiny_dense(base):
    from dataclasses import replace

    config = replace(DeepSeekV3.load(base).config, first_k_dense_replace=2)
    return DeepSeekV3(config).initialize(torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_a_tuned_model_is_held_against_its_start_in_metrics_and_report(tune, stage):
    training = tune(stage)
    list(training.steps())
    (found,) = read_metrics(training.folder).drifts
    assert found.name == ("crabs" if stage == "sft" else "others")
    assert len(found.top_changed) == len(found.load) == 1
    page = (training.folder / "report.html").read_text()
    assert "Drift of the routing" in page
    write_report(training.folder / "again.html", [training.folder], str(training.where))
    assert (training.folder / "again.html").read_text() == page
