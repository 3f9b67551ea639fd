"""What a run writes down can be read again, even if it was killed in mid-line."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from abyssal.train import history
from abyssal.train.history import NAME
from abyssal.train.journal import Journal
from abyssal.train.metrics import read_metrics

START = history.Start(stage="pretrain", recipe={"seed": 1}, machine="a machine")


def step(number: int, loss: float = 2.5) -> history.Step:
    return history.Step(
        step=number, tokens=64 * number, loss=loss, lr=1e-3, batch_tokens=64, grad_norm=0.5,
        tokens_per_s=100.0, elapsed_s=0.1 * number,
    )  # fmt: skip


def write(folder, *rows):
    with Journal(folder) as journal:
        for row in rows:
            journal.write(row)


def test_every_kind_of_row_comes_back_as_it_was_written(tmp_path):
    load = history.Load(step=1, tokens=64, load=((0.25, 0.75), (0.5, 0.5)))
    score = history.Evaluation(step=1, tokens=64, name="stories", bits_per_byte=2.0)
    reference = history.Reference(name="stories", bits_per_byte=2.1, what="xz", source="size")
    event = history.Event(step=1, what="step skipped", detail="loss nan — über")
    sample = history.Sample(step=1, prompt="海\n", text="a\u2028b")
    end = history.End(step=1, tokens=64, elapsed_s=0.5, peak_rss_bytes=1)
    write(tmp_path, START, step(1), load, score, reference, event, sample, end)
    found = read_metrics(tmp_path)
    assert (found.start, found.steps, found.loads) == (START, [step(1)], [load])
    assert (found.evaluations, found.references) == ([score], [reference])
    assert (found.events, found.samples, found.end) == ([event], [sample], end)
    assert found.unreadable == 0


def test_a_row_is_on_its_way_to_the_disk_when_write_returns(tmp_path):
    with Journal(tmp_path) as journal:
        journal.write(START)
        assert json.loads((tmp_path / NAME).read_text())["kind"] == "start"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(cut=st.integers(0, 10_000))
def test_a_file_cut_off_anywhere_is_continued_and_loses_one_row_at_most(tmp_path, cut):
    folder = tmp_path / str(cut)
    write(folder, START, step(1), step(2))
    whole = (folder / NAME).read_bytes()
    left = whole[: cut % (len(whole) + 1)]
    (folder / NAME).write_bytes(left)
    again = dataclasses.replace(START, machine="another machine")
    write(folder, again, step(3))
    found = read_metrics(folder)
    assert found.start == again  # nothing written after the cut is lost
    complete = left.count(b"\n") + (left.endswith(b"}") and left != whole)
    assert [row.step for row in found.steps] == [*range(1, complete), 3]
    assert found.unreadable <= 1


def test_a_second_life_appends_and_takes_the_place_of_what_it_repeats(tmp_path):
    write(tmp_path, START, step(1), step(2, loss=2.0), step(3))
    write(tmp_path, START, history.Event(step=1, what="resumed"), step(2, loss=1.0))
    found = read_metrics(tmp_path)
    assert [(row.step, row.loss) for row in found.steps] == [(1, 2.5), (2, 1.0)]
    assert len((tmp_path / NAME).read_text().splitlines()) == 7


def test_tensorboard_shows_the_same_figures(tmp_path):
    score = history.Evaluation(step=2, tokens=128, name="stories", bits_per_byte=2.25)
    write(tmp_path, START, step(1), step(2, loss=1.5), score)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert losses == [(1, 2.5), (2, 1.5)]
    assert [event.value for event in board.Scalars("held_out/stories")] == [2.25]
    shown = {tag.removeprefix("train/") for tag in board.Tags()["scalars"]}
    drawn = {name for name, value in dataclasses.asdict(step(1)).items() if value is not None}
    assert drawn - {"step", "tokens", "figures"} <= shown


def test_a_kind_nobody_knows_is_no_row(tmp_path):
    with Journal(tmp_path) as journal, pytest.raises(KeyError):
        journal.write("a text")
