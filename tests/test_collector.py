"""The garbage collector is only paused, and left as it was found."""

import gc
import subprocess
import sys

import pytest

from abyssal.collector import paused


@pytest.fixture(autouse=True)
def _as_it_was():
    was_on = gc.isenabled()
    yield
    if was_on:
        gc.enable()
    else:
        gc.disable()


@pytest.mark.parametrize("set_before", [gc.enable, gc.disable])
def test_it_is_left_as_it_was_found_whatever_happens_inside(set_before):
    set_before()
    before = gc.isenabled()
    with paused(), paused():
        assert not gc.isenabled()
    assert gc.isenabled() == before
    with pytest.raises(ValueError, match="inside"), paused():
        raise ValueError("inside")
    assert gc.isenabled() == before


def test_a_public_name_is_imported_without_looking_for_garbage_among_what_torch_made():
    code = """
import gc, torch
full = []
gc.callbacks.append(lambda phase, about: full.append(phase) if about["generation"] == 2 else None)
from abyssal import LLM
print(len(full), gc.isenabled())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0 True"
