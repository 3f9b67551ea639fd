"""The switch: a run in FP8 learns, resumes bit for bit, and publishes a model like any other."""

import json

import pytest
import torch

from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import training as module
from abyssal.train.machine import Machine

FP8 = {"precision": "fp8"}


@pytest.fixture(autouse=True)
def _a_machine_of_one_precision(monkeypatch):
    """What a machine measures must not decide a test."""
    machine = Machine(torch.device("cpu"), torch.get_num_threads(), 1e9, torch.bfloat16)
    monkeypatch.setattr(module, "measure", lambda precision: machine)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fp8": {"gradients": "e5m2", "scales": "tensor"}},
        {"batch": {"micro_sequences": 2}, "model": {"num_nextn_predict_layers": 1}},
        {"recompute": True, "optim": {"matrices": "adamw"}},
    ],
    ids=["plain", "arms", "accumulation-mtp", "recompute-adamw"],
)
def test_a_run_dropped_goes_on_bit_for_bit(begin, finish, drop, changes):
    whole = finish({**FP8, **changes}, out="whole")
    drop(begin({**FP8, **changes}), 7)
    resumed = finish({**FP8, **changes})
    assert [(event.what, event.step) for event in resumed.metrics.events] == [("resumed", 4)]
    assert resumed.weights == whole.weights
    assert resumed.figures == whole.figures
    assert resumed.metrics.evaluations == whole.metrics.evaluations


def test_it_learns_like_bfloat16_but_is_not_it(finish):
    runs = [
        finish({"precision": kind, "tokens": 40 * 64}, out=kind).metrics.steps
        for kind in ("bfloat16", "fp8")
    ]
    low, eight = ([step.loss for step in steps] for steps in runs)
    assert low != eight
    assert eight[-1] < 0.6 * eight[0]
    for one, other in zip(low, eight, strict=True):
        assert one == pytest.approx(other, rel=0.1)


def test_the_folder_is_a_bfloat16_model_that_says_how_it_was_trained(finish):
    run = finish(FP8)
    model = DeepSeekV3.load(run.folder)
    for name, tensor in model.state_dict().items():
        is_router = name.endswith(("gate.weight", "e_score_correction_bias"))
        assert tensor.dtype == (torch.float32 if is_router else torch.bfloat16), name
    assert run.metrics.start.machine.endswith("products in FP8")
    assert "products in FP8" in (run.folder / "report.html").read_text()
    assert json.loads((run.folder / "recipe.json").read_text())["recipe"]["precision"] == "fp8"


def test_another_precision_does_not_go_on_with_it(begin, drop):
    drop(begin(FP8), 7)
    with pytest.raises(ConfigError, match="another recipe \\(precision differ"):
        begin({"precision": "bfloat16"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp9"}, "precision is 'fp9', expected one of"),
        ({"fp8": {"gradients": "e5m2"}}, r'precision is "float32"; set precision = "fp8"'),
        ({**FP8, "fp8": {"gradients": "e3m4"}}, "fp8.gradients is 'e3m4'"),
        ({**FP8, "fp8": {"scale": "tile"}}, "fp8.scale; did you mean fp8.scales"),
    ],
)
def test_mistakes_are_explained(begin, changes, said):
    with pytest.raises(ConfigError, match=said):
        begin(changes)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_every_stage_that_tunes_does_it_in_fp8_too(tune, look, stage):
    runs = []
    for kind in ("bfloat16", "fp8"):
        training = tune(stage, {"precision": kind}, out=kind)
        list(training.steps())
        runs.append(look(training.folder))
    low, eight = runs
    assert eight.weights.keys() == low.weights.keys()
    assert eight.weights != low.weights
    for one, other in zip(low.figures, eight.figures, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.1)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_adapters_are_no_place_for_it(tune, stage):
    with pytest.raises(ConfigError, match="remove \\[lora\\]"):
        tune(stage, {**FP8, "lora": {}})
