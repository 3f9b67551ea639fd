"""Steps that would poison the weights: skipped without a trace, undone in a row, and the end."""

import pytest

from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import text
from abyssal.train import trainer as loop
from abyssal.train.loss import losses

STEPS = 12  # of the toy recipe


@pytest.fixture
def poison(monkeypatch):
    """poison(when, how): change the losses of the passes whose number `when` accepts."""

    def set_up(when, how):
        passes = [0]

        def poisoned(*arguments, **options):
            passes[0] += 1
            found = losses(*arguments, **options)
            return how(found) if when(passes[0]) else found

        monkeypatch.setattr(text, "losses", poisoned)
        return passes

    return set_up


HOWS = {
    "the loss is not a number": lambda found: found._replace(main=found.main * float("nan")),
    "the loss is infinite": lambda found: found._replace(main=found.main + float("inf")),
    "a term beside it is not a number": lambda found: found._replace(
        balance=found.balance * float("nan")
    ),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_poisoned_step_is_skipped_and_never_reaches_the_weights(begin, poison, how, kind):
    poison(lambda number: number == 6, HOWS[how])
    training = begin({"precision": kind})
    rows = list(training.steps())
    model = DeepSeekV3.load(training.folder)
    assert all(parameter.isfinite().all() for parameter in model.state_dict().values())
    assert [row.step for row in rows] == list(range(1, STEPS + 1))  # made up for with other data
    assert all(0 < row.loss < 10 and 0 < row.grad_norm < 1e3 for row in rows)


def test_a_skipped_step_is_as_if_its_data_had_not_been_there(finish, poison, monkeypatch):
    poison(lambda number: number == 2, HOWS["the loss is not a number"])
    skipped = finish(out="skipped")
    (event,) = skipped.metrics.events
    assert (event.step, event.what) == (1, "step skipped")
    assert "nan" in event.detail
    poison(lambda number: False, None)
    draws, real = [0], loop.Trainer._draw

    def draw(self):
        draws[0] += 1
        if draws[0] == 2:
            real(self)
        return real(self)

    monkeypatch.setattr(loop.Trainer, "_draw", draw)
    without = finish(out="without")
    assert skipped.weights == without.weights
    assert skipped.figures == without.figures


def test_a_run_dropped_around_a_skipped_step_goes_on_bit_for_bit(begin, finish, poison, stop):
    def skip(number):
        return number == 6

    poison(skip, HOWS["the loss is not a number"])
    whole = finish(out="whole")
    poison(skip, HOWS["the loss is not a number"])
    stop(begin(), 6)  # seven passes, of which the sixth was skipped
    poison(lambda number: False, None)
    resumed = finish()
    assert resumed.weights == whole.weights
    assert resumed.figures == whole.figures


def test_a_row_of_bad_steps_takes_the_run_back_to_its_last_state_and_on_with_other_data(
    finish, poison
):
    clean = finish(out="clean")
    poison(lambda number: 7 <= number <= 11, HOWS["the loss is not a number"])
    run = finish()
    events = [(event.what, event.step) for event in run.metrics.events]
    assert events == [("step skipped", 6)] * 5 + [("rewind", 4)]
    assert [row.step for row in run.metrics.steps] == list(range(1, STEPS + 1))
    assert run.figures[:4] == clean.figures[:4]
    assert run.figures[4].loss != clean.figures[4].loss


@pytest.fixture
def poison_data(finish, monkeypatch):
    """poison_data(places, how): batches of these numbers have such losses whenever they are met."""

    def set_up(places, how, changes):
        taken, bad = [], []

        def by_data(output, head, batch, **options):
            found = losses(output, head, batch, **options)
            taken.append(batch.tokens.tolist())
            return how(found) if taken[-1] in bad else found

        monkeypatch.setattr(text, "losses", by_data)
        finish(changes, out="scout")
        bad.extend(taken[place] for place in places)

    return set_up


def test_a_run_dropped_after_a_rewind_meets_the_same_data_again_and_ends_the_same(
    begin, finish, poison_data, drop
):
    poison_data(range(5, 10), HOWS["the loss is not a number"], {})
    whole = finish(out="whole")
    events = [(event.what, event.step) for event in whole.metrics.events]
    assert events == [("step skipped", 5)] * 5 + [("rewind", 4)]
    drop(begin(), 7)
    resumed = finish()
    assert resumed.weights == whole.weights
    assert resumed.figures == whole.figures


def test_a_spike_after_a_restart_is_held_against_the_losses_before_it(
    begin, finish, poison_data, drop
):
    changes = {"guard": {"window": 4}}
    poison_data([5], lambda found: found._replace(main=3 * found.main), changes)
    whole = finish(changes, out="whole")
    assert [(e.what, e.step) for e in whole.metrics.events] == [("step skipped", 5)]
    drop(begin(changes), 5)  # one step after the state that it goes on from
    resumed = finish(changes)
    assert resumed.weights == whole.weights
    assert resumed.figures == whole.figures


def test_a_run_that_keeps_failing_ends_in_a_sentence_and_keeps_its_states(begin, poison):
    passes = poison(lambda number: number > 6, HOWS["the loss is not a number"])
    training = begin()
    with pytest.raises(ConfigError, match=r"diverged at step .*again and again.*optim\.lr=0\.01"):
        list(training.steps())
    assert passes[0] == 6 + 5 * 4  # five bad steps, three rewinds, and five at the end
    assert not training.is_done
    assert (training.folder / "trainer" / "step-00000004").is_dir()


def test_a_run_that_fails_before_its_first_state_says_so(begin, poison):
    poison(lambda number: True, HOWS["the loss is infinite"])
    with pytest.raises(ConfigError, match="no saved state to go back to; lower"):
        list(begin().steps())
