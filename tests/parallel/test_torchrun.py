"""Two processes under torchrun, one of them killed: both end, and two go on from its state."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.conftest import ENVIRONMENT

PATIENCE_S = 120
STEPS, STEP, SAVE_EVERY = 40, 64, 5

pytestmark = pytest.mark.slow


def num_steps(folder):
    """Steps taken in all lives."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b'"kind": "step"') if path.exists() else 0


def children(process):
    """The processes that a process started, oldest first."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in found.split()]


def test_one_killed_under_torchrun_ends_both_and_two_go_on_bit_for_bit(
    together, course, look, tmp_path
):
    changes = {"batch": {"micro_sequences": 1}, "zero": 1, "tokens": STEPS * STEP,
               "save_every": SAVE_EVERY}  # fmt: skip
    together(changes, out="whole")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
             "-m", "abyssal", "train", str(course.root / "toy.toml"), f"out={tmp_path / 'run'}",
             "batch.micro_sequences=1", "zero=1", f"tokens={STEPS * STEP}",
             f"save_every={SAVE_EVERY}"]  # fmt: skip
    environment = {**ENVIRONMENT, "PYTHONWARNINGS": "ignore"}
    errors, deadline = tmp_path / "errors", time.monotonic() + PATIENCE_S
    with (
        errors.open("w") as log,
        subprocess.Popen(words, env=environment, stderr=log) as process,
    ):
        while num_steps(tmp_path / "run") < SAVE_EVERY + 2:
            assert time.monotonic() < deadline, errors.read_text()
            time.sleep(0.01)
        os.kill(children(process)[1], signal.SIGKILL)
        assert process.wait(PATIENCE_S) != 0
    said = [line for line in errors.read_text().splitlines() if line.startswith("error:")]
    assert len(said) <= 1  # none where torchrun was faster than the other process
    assert all("another process of this run ended" in line for line in said)
    assert num_steps(tmp_path / "run") < STEPS
    together(changes)
    again, whole = look(tmp_path / "run"), look(tmp_path / "whole")
    assert again.weights == whole.weights
    assert again.figures == whole.figures
