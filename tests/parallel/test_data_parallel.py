"""Laws of training in several processes: they are one, whoever keeps the optimizer's state."""

import shutil
import signal

import pytest

from abyssal.checkpoint import state
from abyssal.train.metrics import read_metrics
from tests.parallel.conftest import one_process

STEPS = 12  # of the toy recipe
PIECES = {"micro_sequences": 1}  # four a step
EXACT = {"batch": PIECES, "optim": {"matrices": "adamw", "moments": "float32", "lr": 0.001}}
KINDS = {
    "MTP, recomputed": EXACT | {"model": {"num_nextn_predict_layers": 1}, "recompute": True},
    "three pieces": EXACT | {"batch": PIECES | {"sequences": [{"until": 1, "to": 3}]}},
    "one piece": EXACT | {"batch": {"micro_sequences": 4}, "zero": 1},  # rank 1 has none
    "muon in BF16": {"batch": PIECES, "precision": "bfloat16", "zero": 1},
}


def assert_near(one, other, rel=1e-4):
    assert len(one.figures) == len(other.figures) >= STEPS
    for row, beside in zip(one.figures, other.figures, strict=True):
        assert row.tokens == beside.tokens
        for name in ("loss", "mtp_loss", "balance_loss", "grad_norm", "lr"):
            expected = getattr(beside, name)
            near = expected if expected is None else pytest.approx(expected, rel=rel, abs=1e-6)
            assert getattr(row, name) == near, name
        ours, theirs = row.figures or {}, beside.figures or {}
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            # Rewards are differences of sums of log-probabilities.
            least = 1e-5 if name.startswith("reward/") else 1e-6
            assert ours[name] == pytest.approx(expected, rel=rel, abs=least), name


def assert_same(seen):
    first, second = seen
    for name in ("weights", "losses", "stopped_by", "planned_tokens", "error"):
        assert first[name] == second[name], name


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(together, alone, look, tmp_path, kind):
    seen = together(KINDS[kind])
    assert_same(seen)
    ours, one = look(tmp_path / "run"), alone(KINDS[kind], out="alone")
    assert_near(ours, one, rel=2e-2 if "BF16" in kind else 1e-4)
    assert ours.figures[0].max_violation == one.figures[0].max_violation
    assert (ours.metrics.start.world, ours.metrics.end.world) == (2, 2)
    assert ours.metrics.end.peak_memory_bytes == seen[0]["peak_memory_bytes"] > 0
    evaluated = [[row.step for row in run.metrics.evaluations] for run in (ours, one)]
    assert evaluated[0] == evaluated[1]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [("sft", {"lora": {"rank": 2}, "batch": PIECES, "zero": 1}),
     ("dpo", {"batch": {"micro_sequences": 1}})],
)  # fmt: skip
def test_tuning_in_two_processes_is_tuning_in_one(together, alone, look, tmp_path, stage, changes):
    changes = {"optim": {"moments": "float32"}, **changes}
    assert_same(together(changes, stage=stage))
    ours, one = look(tmp_path / "run"), alone(changes, out="alone", stage=stage)
    assert_near(ours, one)
    assert len(ours.metrics.drifts) == len(one.metrics.drifts) == 1


# States


@pytest.fixture(scope="module")
def undisturbed(course, look, tmp_path_factory):
    """The run that one process takes in one life."""
    return one_process(
        course.root / "toy.toml", EXACT, tmp_path_factory.mktemp("one") / "run", look
    )


@pytest.mark.parametrize("zero", [0, 1])
def test_two_go_on_bit_for_bit_and_one_goes_on_where_they_stopped(
    together, alone, undisturbed, look, tmp_path, zero
):
    changes = {**EXACT, "zero": zero, "save_every": 5}
    together(changes, out="whole")
    together(changes, drop=8)
    shutil.copytree(tmp_path / "run", tmp_path / "left")
    together(changes)
    whole, again = look(tmp_path / "whole"), look(tmp_path / "run")
    assert [row.step for row in again.metrics.events] == [5]
    assert again.weights == whole.weights
    assert again.figures == whole.figures
    one = alone({**changes, "zero": 1 - zero}, out="left")
    assert [row.step for row in one.metrics.events] == [5]
    assert_near(one, undisturbed)
    assert_near(whole, undisturbed)


def test_two_go_on_where_one_stopped(together, alone, undisturbed, look, tmp_path):
    changes = {**EXACT, "save_every": 5}
    alone(changes, drop=8)
    assert_same(together({**changes, "zero": 1}))
    assert_near(look(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_each_keeps_half_and_saves_what_one_process_would(together, alone, tmp_path, matrices):
    changes = {"batch": PIECES, "optim": {"matrices": matrices}, "precision": "bfloat16",
               "save_every": 1}  # fmt: skip
    alone(changes, out="alone", drop=2)
    kept = [one["state_bytes"] for one in together({**changes, "zero": 1}, drop=2)]
    (whole, _) = (one["state_bytes"] for one in together(changes, out="whole", drop=2))
    assert sum(kept) == whole
    assert max(kept) < 0.55 * whole
    ours, theirs = (
        {name: (t.shape, t.dtype) for name, t in state.latest(path).tensors.items()}
        for path in (tmp_path / "run" / "trainer", tmp_path / "alone" / "trainer")
    )
    assert ours == theirs


# Ends


def test_a_signal_to_one_stops_both_after_the_same_step_and_saves_once(together, tmp_path):
    seen = together({**EXACT, "zero": 1}, second={"signal": 6})
    assert_same(seen)
    assert seen[0]["stopped_by"] == signal.SIGTERM
    assert len(seen[0]["losses"]) == 6
    assert [path.name for path in (tmp_path / "run" / "trainer").iterdir()] == [
        f"step-{step:08d}" for step in (4, 6)
    ]


def test_a_poisoned_pass_of_one_is_skipped_by_both(together, tmp_path):
    seen = together(EXACT, second={"poison": 5})
    assert_same(seen)
    assert len(seen[0]["losses"]) == STEPS
    (event,) = read_metrics(tmp_path / "run").events
    assert (event.step, event.what) == (2, "step skipped")


def test_minutes_are_those_of_one_clock(together):
    seen = together({**EXACT, "tokens": 1e6, "minutes": 0.02})
    assert_same(seen)
    assert seen[0]["planned_tokens"] < 1e6


def test_two_recipes_are_refused_by_both(together, course, tmp_path):
    changes = {**EXACT, "out": str(tmp_path / "run"), "seed": 9}
    seen = together(EXACT, second={"changes": changes})
    assert all("their recipes differ" in one["error"] for one in seen)
