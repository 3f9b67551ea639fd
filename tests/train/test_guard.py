"""The guard: good steps pass, bad ones never do, and too many in a row call for a rewind."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.train.guard import Guard, GuardRules, Verdict

TAKE, SKIP, REWIND = Verdict.TAKE, Verdict.SKIP, Verdict.REWIND
RULES = GuardRules(window=8, deviations=4.0, margin=0.5, patience=3)
BROKEN = [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf), (-math.inf, 1.0)]
LOSSES = st.floats(0, 20) | st.sampled_from([math.nan, math.inf])


def steady(loss=2.0, rules=RULES) -> Guard:
    """A guard whose window is full of one loss."""
    guard = Guard(rules)
    assert [guard.judge(loss, 1.0) for _ in range(rules.window)] == [TAKE] * rules.window
    return guard


@pytest.mark.parametrize(("loss", "norm"), BROKEN)
def test_what_is_not_finite_is_never_taken_full_window_or_not(loss, norm):
    for guard in (Guard(RULES), steady()):
        assert guard.judge(loss, norm) is SKIP
        assert all(math.isfinite(x) for x in guard.recent)


def test_until_the_window_is_full_any_finite_loss_is_taken():
    guard = Guard(RULES)
    assert [guard.judge(loss, 1e9) for loss in (9.0, 1.0, 50.0, 0.1, 99.0)] == [TAKE] * 5


def test_a_spike_is_skipped_and_leaves_no_trace_in_the_window():
    guard = steady()
    before = list(guard.recent)
    assert guard.judge(2.4, 1.0) is TAKE  # within the margin
    assert guard.judge(4.0, 1.0) is SKIP
    assert list(guard.recent) == [*before[1:], 2.4]


def test_noise_widens_the_ceiling_beyond_the_margin():
    guard = Guard(RULES)
    for i in range(8):
        guard.judge(2.0 + i % 2, 1.0)
    assert guard.ceiling() == pytest.approx(2.5 + 4 * 0.5)
    assert guard.judge(4.4, 1.0) is TAKE
    assert steady().ceiling() == pytest.approx(2.5)


def test_a_loss_that_falls_is_always_taken():
    guard = Guard(RULES)
    assert all(guard.judge(10.0 * 0.9**i, 1.0) is TAKE for i in range(100))


def test_patience_bad_steps_in_a_row_mean_a_rewind_and_the_count_begins_anew():
    guard = steady()
    verdicts = [guard.judge(math.nan, 1.0) for _ in range(7)]
    assert verdicts == [SKIP, SKIP, REWIND, SKIP, SKIP, REWIND, SKIP]


def test_a_good_step_between_bad_ones_is_forgiving():
    guard = steady()
    row = [math.nan, math.nan, 2.0] * 5
    assert REWIND not in [guard.judge(loss, 1.0) for loss in row]


@given(st.lists(LOSSES, max_size=40), st.integers(0, 40))
def test_a_restored_guard_judges_as_the_one_that_was_saved(row, cut):
    through, before, after = Guard(RULES), Guard(RULES), Guard(RULES)
    expected = [through.judge(loss, 1.0) for loss in row]
    found = [before.judge(loss, 1.0) for loss in row[:cut]]
    after.judge(3.0, 1.0)
    after.restore(json.loads(json.dumps(before.state())))
    assert found + [after.judge(loss, 1.0) for loss in row[cut:]] == expected


@given(st.lists(LOSSES, max_size=40))
def test_the_window_only_ever_holds_losses_that_were_taken(row):
    guard = Guard(RULES)
    taken = [loss for loss in row if guard.judge(loss, 1.0) is TAKE]
    assert list(guard.recent) == taken[-RULES.window :]


@pytest.mark.parametrize(
    ("values", "named"),
    [({"window": 1}, "window=1"), ({"patience": 0}, "patience=0"),
     ({"deviations": 0.0}, "deviations=0.0"), ({"margin": -1.0}, "margin=-1.0")],
)  # fmt: skip
def test_impossible_rules_are_refused_by_name(values, named):
    with pytest.raises(ConfigError, match=named):
        GuardRules(**values)
