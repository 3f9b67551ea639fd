"""Laws of the loop: resumed equals uninterrupted, parts equal the whole, bad steps pass by."""

from functools import cache
from itertools import pairwise

import pytest
import torch

from abyssal.model.transformer import DeepSeekV3
from abyssal.train import trainer as loop
from abyssal.train.training import Training

STEPS, STEP = 12, 64  # of the toy recipe: steps, and tokens in each

KINDS = {
    "plain": {},
    "bfloat16": {"precision": "bfloat16"},
    "adamw": {"optim": {"matrices": "adamw", "moments": "float32"}},
    "accumulation": {"batch": {"micro_sequences": 1}},
    "mtp": {"model": {"num_nextn_predict_layers": 2}},
    "ramp": {"batch": {"micro_sequences": 2,
                       "sequences": [{"until": 0.7, "start": 2, "to": 8, "shape": "linear"}]}},
    "recompute": {"recompute": True},
    "isolated": {"data": {"isolate": True}},
    "dense": {"model": {"first_k_dense_replace": 2}},
}  # fmt: skip


def assert_same(one, other):
    assert one.weights == other.weights
    assert one.figures == other.figures
    assert one.metrics.evaluations == other.metrics.evaluations
    assert one.metrics.loads == other.metrics.loads


# Resumed is uninterrupted


@pytest.fixture(scope="module")
def whole(course, look, tmp_path_factory):
    """whole("plain"): the run of that kind that nobody disturbed; made once."""

    @cache
    def run(kind):
        out = tmp_path_factory.mktemp("whole") / kind
        training = Training(course.recipe, {"out": out, **KINDS[kind]})
        list(training.steps())
        return look(training.folder)

    return run


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(begin, finish, whole, stop, step):
    stop(begin(), step)
    resumed = finish()
    assert_same(resumed, whole("plain"))
    assert [(e.what, e.step) for e in resumed.metrics.events] == [("resumed", step)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_dropped_twice_goes_on_bit_for_bit(begin, finish, whole, drop, kind):
    drop(begin(KINDS[kind]), 3)  # before the first state: begins anew
    drop(begin(KINDS[kind]), 7)
    resumed = finish(KINDS[kind])
    assert_same(resumed, whole(kind))
    assert [(e.what, e.step) for e in resumed.metrics.events] == [("resumed", 4)]


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(finish, whole):
    assert_same(finish(out="again"), whole("plain"))
    assert finish({"seed": 4}, out="other").weights != whole("plain").weights


def test_how_often_it_is_saved_changes_nothing(finish, whole):
    assert_same(finish({"save_every": 1, "keep": 1}), whole("plain"))


def test_evaluating_changes_nothing(finish):
    often, never = finish({"eval_every": 1}, out="often"), finish({"eval_every": 999}, out="never")
    assert often.weights == never.weights
    assert often.figures == never.figures
    assert len(often.metrics.evaluations) == STEPS
    assert len(never.metrics.evaluations) == 1  # at the end


# Parts are the whole


@pytest.mark.parametrize("mtp", [0, 1])
def test_micro_batches_are_together_one_batch(finish, mtp):
    runs = []
    for size in (1, 2, 4):
        changes = {"batch": {"micro_sequences": size}, "model": {"num_nextn_predict_layers": mtp},
                   "tokens": 4 * STEP, "optim": {"matrices": "adamw"}}  # fmt: skip
        runs.append(finish(changes, out=f"by-{size}").figures)
    # The last rows of an MTP module have no token to come: they are routed, but not learned.
    names = ["loss", "mtp_loss"] if mtp else ["loss", "balance_loss", "grad_norm", "max_violation"]
    for run in runs[:2]:
        for name in names:  # of the first step: what follows adds up rounding
            expected = getattr(runs[2][0], name)
            assert getattr(run[0], name) == pytest.approx(expected, rel=1e-5), name
        for row, other in zip(run, runs[2], strict=True):
            assert row.batch_tokens == other.batch_tokens == STEP
            assert row.loss == pytest.approx(other.loss, rel=1e-3)


def test_recomputing_activations_changes_neither_gradients_nor_counts(whole):
    for row, other in zip(whole("plain").figures, whole("recompute").figures, strict=True):
        assert row.loss == pytest.approx(other.loss, rel=1e-4)
        assert row.max_violation == other.max_violation


def test_the_load_of_a_step_is_every_choice_of_every_token_once(begin, monkeypatch):
    counted = []
    update = loop.balance.update_biases

    def note(gates, load, gamma):
        counted.append(load)
        update(gates, load, gamma)

    monkeypatch.setattr(loop.balance, "update_biases", note)
    changes = {"recompute": True, "eval_every": 1, "batch": {"micro_sequences": 1},
               "model": {"num_nextn_predict_layers": 1}}  # fmt: skip
    list(begin(changes).steps())
    assert len(counted) == STEPS
    assert all(load.sum(-1).tolist() == [STEP * 2, STEP * 2] for load in counted)


def test_the_ramp_is_keyed_to_tokens_and_ends_the_run_on_time(whole):
    rows = whole("ramp").metrics.steps
    sizes = [row.batch_tokens for row in rows]
    assert sizes[0] == 2 * 16
    assert sizes == sorted(sizes)
    assert sizes[-1] == 8 * 16
    assert all(a.tokens + b.batch_tokens == b.tokens for a, b in pairwise(rows))
    assert rows[-2].tokens < STEPS * STEP <= rows[-1].tokens


def test_a_run_learns(finish):
    rows = finish({"tokens": 40 * STEP, "eval_every": 20}).metrics
    assert rows.steps[-1].loss < 0.6 * rows.steps[0].loss
    assert rows.evaluations[-1].bits_per_byte < rows.evaluations[0].bits_per_byte


def test_the_learning_rate_warms_up_by_steps_and_then_follows_the_tokens(whole):
    rates = [row.lr for row in whole("plain").metrics.steps]
    assert rates[0] == pytest.approx(0.01 / 3)
    assert rates.index(max(rates)) == 2
    assert rates[2:] == sorted(rates[2:], reverse=True)


# What the working copy is


def test_routers_and_their_biases_stay_in_float32_whatever_the_precision(begin):
    training = begin({"precision": "bfloat16"})
    list(training.steps())
    model = DeepSeekV3.load(training.folder)
    for name, tensor in model.state_dict().items():
        is_router = name.endswith(("gate.weight", "e_score_correction_bias"))
        assert tensor.dtype == (torch.float32 if is_router else torch.bfloat16), name
    (gate,) = model.gates()
    assert gate.e_score_correction_bias.any()
    assert torch.all((gate.e_score_correction_bias / 0.01).round(decimals=3) % 1 == 0)


def test_every_saved_number_is_finite_and_the_load_is_in_the_metrics(finish):
    run = finish({"tokens": 20 * STEP})
    (load,) = run.metrics.loads
    assert load.step == 20
    assert sum(load.load[0]) == pytest.approx(1.0, abs=1e-4)
