"""What every test may count on: repeatable randomness, no network, and a command line."""

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers, used for comparison only, must not look outside

# Laws are checked on the same examples every time, so a red run can be repeated. No deadline: the
# first example pays for imports and compilers.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Seed torch's global generator, where a test has imported torch at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def abyssal_command(monkeypatch, capsys) -> Callable[..., Ran]:
    """abyssal_command("plan", "tiny"): the command line as a person runs it, in this process."""
    from abyssal.cli.main import main

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["abyssal", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return run
