"""Simulated schedules: the published waits, the released phases, and laws of any schedule."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.plan.pipeline import Times, formula, simulate
from abyssal.plan.schedules import SCHEDULES, least_micro_batches, program

EVEN = st.integers(1, 6).map(lambda half: 2 * half)


@st.composite
def times(draw) -> Times:
    """A backward costs more than its weights' part, and a pair no less than its backward."""
    forward, inputs, weights = (draw(st.integers(1, 8)) for _ in range(3))
    backward = inputs + weights
    return Times(forward, backward, weights, draw(st.integers(backward, backward + forward)))


@st.composite
def cases(draw) -> tuple[str, int, int, Times]:
    schedule, stages = draw(st.sampled_from(SCHEDULES)), draw(EVEN)
    least = max(least_micro_batches(schedule, stages), stages)
    return schedule, stages, least + 2 * draw(st.integers(0, 5)), draw(times())


@pytest.mark.parametrize(
    ("schedule", "idle", "kept"),
    [("1f1b", 45, 16), ("zb1p", 15, 16), ("dualpipe", 14, 17), ("dualpipev", 14, 17)],
)
def test_sixteen_stages_wait_as_published(schedule, idle, kept):
    timeline = simulate(schedule, 16, 40, Times())
    assert set(timeline.idle) == {idle}
    assert max(timeline.peak_chunks) == kept  # P, or P + 1


@given(cases())
@settings(max_examples=60, deadline=None)
def test_each_chunk_runs_once_on_its_rank_and_after_what_it_needs(case):
    schedule, stages, micro_batches, durations = case
    timeline = simulate(schedule, stages, micro_batches, durations)
    ended = {"F": {}, "B": {}}
    for spans in timeline.ranks:
        for before, after in pairwise(spans):
            assert before.end <= after.start
        for span in spans:
            for way, chunk in (("F", span.task.forward), ("B", span.task.backward)):
                if chunk and span.task.kind != "W":
                    assert chunk not in ended[way]
                    ended[way][chunk] = span
    pipes = 2 if schedule == "dualpipe" else 1
    assert len(ended["F"]) == len(ended["B"]) == stages * micro_batches
    assert {chunk.pipe for chunk in ended["F"]} == set(range(pipes))
    for chunk, span in ended["F"].items():
        if chunk.stage:
            assert ended["F"][chunk._replace(stage=chunk.stage - 1)].end <= span.start
    for chunk, span in ended["B"].items():
        assert ended["F"][chunk].end <= span.start
        if chunk.stage < stages - 1:
            assert ended["B"][chunk._replace(stage=chunk.stage + 1)].end <= span.start


@given(cases())
@settings(max_examples=60, deadline=None)
def test_weights_are_computed_once_for_every_backward_and_after_it(case):
    schedule, stages, micro_batches, _ = case
    for tasks in program(schedule, stages, micro_batches):
        waiting = set()
        for task in tasks:
            if task.kind == "I":
                waiting.add(task.backward)
            elif task.kind == "W":
                waiting.remove(task.backward)
        assert not waiting


@given(cases())
@settings(max_examples=60, deadline=None)
def test_no_step_is_shorter_than_its_longest_way_or_its_busiest_rank(case):
    schedule, stages, micro_batches, durations = case
    timeline = simulate(schedule, stages, micro_batches, durations)
    there = stages * durations.forward
    back = stages * (durations.backward - durations.weights)
    assert timeline.span >= there + back
    busy = [sum(span.end - span.start for span in spans) for spans in timeline.ranks]
    assert timeline.span >= max(busy)
    assert 0 <= timeline.bubble < 1


@given(stages=EVEN, more=st.integers(0, 8), durations=times(), zero=st.booleans())
@settings(max_examples=60, deadline=None)
def test_one_forward_one_backward_waits_as_the_formula_says_on_every_rank(
    stages, more, durations, zero
):
    schedule = "zb1p" if zero else "1f1b"
    if zero:  # its formula assumes that a backward's parts take as long as a forward
        durations = Times(durations.forward, 2 * durations.forward, durations.forward, 0)
    timeline = simulate(schedule, stages, 2 * stages + more, durations)
    assert timeline.idle == pytest.approx([formula(schedule, stages, durations)] * stages)


@given(half=st.integers(2, 6), more=st.integers(0, 5), folded=st.booleans())
@settings(max_examples=40, deadline=None)
def test_dualpipe_waits_as_the_formula_says_where_pairs_take_as_long_as_apart(half, more, folded):
    schedule = "dualpipev" if folded else "dualpipe"
    timeline = simulate(schedule, 2 * half, 4 * half + 2 * more, Times())
    assert set(timeline.idle) == {formula(schedule, 2 * half, Times())}


@pytest.mark.parametrize("both", [2.5, 2.8, 3.0])
@pytest.mark.parametrize("schedule", ["dualpipe", "dualpipev"])
def test_faster_pairs_make_the_middle_ranks_wait_longest_and_by_the_formula(schedule, both):
    durations = Times(1.0, 2.0, 1.0, both)
    timeline = simulate(schedule, 8, 20, durations)
    assert max(timeline.idle) == pytest.approx(formula(schedule, 8, durations))


@given(cases(), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_more_micro_batches_neither_wait_nor_keep_more(case, more):
    schedule, stages, micro_batches, _ = case
    first = simulate(schedule, stages, 2 * micro_batches, Times())
    longer = simulate(schedule, stages, 2 * micro_batches + 2 * more, Times())
    assert longer.idle == first.idle
    assert longer.peak_chunks == first.peak_chunks


def test_the_phases_of_an_end_and_a_middle_rank_are_the_released_ones():
    end, *_, middle, _, _, _, _ = program("dualpipe", 8, 20)
    kinds = [task.kind for task in end]
    assert kinds[:8] == ["F"] * 8  # 6 one way, then one each way
    assert kinds[8:17] == ["I", "W", "F"] * 3
    assert kinds[17:23] == ["F&B"] * 6  # three times a pair each way
    assert kinds[23:29] == ["B", "F&B"] * 3
    assert kinds[29:] == ["B", "I", "W", "I", "W", "I", "W", "I", "W"]
    one_way = [task.forward for task in end if task.forward and task.forward.pipe == 0]
    assert len(one_way) == 10
    kinds = [task.kind for task in middle]
    assert kinds[:8] == ["F"] * 8
    assert kinds[8:11] == ["F", "B", "F&B"]  # its first pair runs apart


@pytest.mark.parametrize(
    ("schedule", "stages", "micro_batches", "said"),
    [
        ("dualpipe", 15, 40, "odd; take an even pp"),
        ("dualpipe", 16, 41, "41 is odd"),
        ("dualpipe", 16, 30, "at least 32 micro-batches"),
        ("dualpipev", 16, 15, "at least 16 micro-batches"),
        ("gpipe", 4, 8, "expected one of 1f1b"),
        ("1f1b", 0, 8, "expected at least 1"),
    ],
)
def test_what_cannot_be_scheduled_is_told_what_can(schedule, stages, micro_batches, said):
    with pytest.raises(ConfigError, match=said):
        simulate(schedule, stages, micro_batches, Times())
