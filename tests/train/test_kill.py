"""Killed at any moment and started again, a run ends at the same weights, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import abyssal

SAVE_EVERY, STEPS, STEP = 5, 200, 64
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",  # a forked child has no threads of its parent
    "PYTHONPATH": str(Path(abyssal.__file__).parents[1]),
}
PATIENCE_S = 60

pytestmark = pytest.mark.slow


class Server:
    """The other end of fork_server.py."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process

    def start(self, *words: object) -> int:
        """Begin a command -> its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        return self._number()

    def wait(self) -> int:
        """The exit code of the command begun last."""
        return self._number()

    def _number(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the fork server ended"
        return int(line)


@contextmanager
def serving(log: Path) -> Iterator[Server]:
    script = Path(__file__).with_name("fork_server.py")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, script], env=ENVIRONMENT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        ) as process,
    ):  # fmt: skip
        try:
            yield Server(process)
        finally:
            process.kill()


def rows(folder: Path) -> list[dict]:
    """What the run wrote down, torn lines left out."""
    found = []
    path = folder / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def num_steps(folder: Path) -> int:
    """Steps taken in all lives, those taken twice counted twice."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b'"kind": "step"') if path.exists() else 0


def wait_for(claim) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not claim():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.002)


def lost_steps(folder: Path) -> list[int]:
    """For each life that took a step, how many steps of those before it were not there any more."""
    lost, last, new_life = [], 0, False
    for row in rows(folder):
        if row["kind"] == "start":
            new_life = True
        elif row["kind"] == "step":
            if new_life:
                lost.append(last - (row["step"] - 1))
            last, new_life = row["step"], False
    return lost


@pytest.fixture(scope="module")
def recipe(course) -> Path:
    path = course.root / "long.toml"
    path.write_text(
        f'base = "{course.recipe}"\ntokens = {STEPS * STEP}\nsave_every = {SAVE_EVERY}\n'
        'eval_every = 20\nsamples = ["fish"]\n'
    )
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server, recipe, look, tmp_path_factory):
    """The same run in one life."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    server.start("train", recipe, f"out={out}")
    assert server.wait() == 0
    run = look(out)
    assert lost_steps(out) == [0]
    return run


def assert_same_end(folder, undisturbed, look):
    run = look(folder)
    assert run.weights == undisturbed.weights
    assert run.figures == undisturbed.figures
    assert run.metrics.evaluations == undisturbed.metrics.evaluations
    assert run.metrics.samples == undisturbed.metrics.samples
    assert not (folder / "trainer").exists()
    assert not list(folder.glob(".*"))


def test_killed_at_twenty_moments_and_more_at_the_end(server, recipe, undisturbed, look, tmp_path):
    rng, out = random.Random(20), tmp_path / "run"
    moments = [("early", rng.uniform(0, 0.4)) for _ in range(4)]
    moments += [("after steps", rng.randint(0, 9)) for _ in range(16)]
    rng.shuffle(moments)
    kills = 0
    for when, number in [*moments, *[("at the end", 0)] * 4]:
        before = num_steps(out)
        child = server.start("train", recipe, f"out={out}")
        if when == "early":
            time.sleep(number)
        elif when == "after steps":
            # Long enough that a life never reaches the end: the next wait would last for ever.
            assert not (out / "done.json").exists(), "raise STEPS: the run ended before its kills"
            wait_for(lambda more=number, before=before: num_steps(out) >= before + more)
        else:
            wait_for(lambda: f'"step": {STEPS}, ' in (out / "metrics.jsonl").read_text())
        time.sleep(rng.uniform(0, 0.02 if when == "after steps" else 0.2))
        with suppress(ProcessLookupError):  # it may have come to its end
            os.kill(child, signal.SIGKILL)
        code = server.wait()
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
    assert kills >= 20
    server.start("train", recipe, f"out={out}")
    assert server.wait() == 0
    assert_same_end(out, undisturbed, look)
    lost = lost_steps(out)
    assert len(lost) > 10
    assert 0 < max(lost) <= SAVE_EVERY


@pytest.mark.parametrize(("stage", "adapters"), [("sft", True), ("dpo", False), ("reward", False)])
def test_every_stage_killed_at_random_ends_the_same(
    server, course, base, look, tmp_path, stage, adapters
):
    rng = random.Random(f"{stage} {adapters}")
    words = ["train", course.root / f"{stage}.toml", f"init={base}"]
    words.append(f"tokens={60 * STEP}" if stage == "sft" else "epochs=10.0")
    words += ["lora.rank=2"] if adapters else []
    server.start(*words, f"out={tmp_path / 'whole'}")
    assert server.wait() == 0
    out, kills = tmp_path / "run", 0
    for number in [rng.randint(1, 9) for _ in range(3)]:
        before = num_steps(out)
        child = server.start(*words, f"out={out}")
        wait_for(lambda more=number, before=before: num_steps(out) >= before + more)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        kills += server.wait() == -signal.SIGKILL
    assert kills == 3
    server.start(*words, f"out={out}")
    assert server.wait() == 0
    ours, theirs = look(out), look(tmp_path / "whole")
    assert ours.weights == theirs.weights
    assert ours.figures == theirs.figures
    assert ours.metrics.measures == theirs.metrics.measures
    assert ours.metrics.drifts == theirs.metrics.drifts


def test_terminated_or_killed_as_a_real_process_and_run_again(recipe, undisturbed, look, tmp_path):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "abyssal", "train", str(recipe), f"out={out}"]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 128 + 15)):
        before = num_steps(out)
        with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda before=before: num_steps(out) >= before + 7)
            process.send_signal(number)
            _, said = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == code
    assert "stopped and saved" in said
    done = subprocess.run([*words, "--json"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] is True
    assert_same_end(out, undisturbed, look)
    (killed, terminated) = lost_steps(out)[1:]
    assert killed <= SAVE_EVERY
    assert terminated == 0
