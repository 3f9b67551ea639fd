"""The public API: nine names, imported when first asked for."""

import subprocess
import sys

import pytest

import abyssal
from abyssal.config import ModelConfig
from abyssal.plan.count import count

NAMES = [
    *("Batch", "DeepSeekV3", "LLM", "Message", "ModelConfig", "SamplingParams"),
    *("load", "plan", "train"),
]


def test_these_are_the_names():
    assert sorted(abyssal._HOMES) == NAMES
    assert set(NAMES) <= set(dir(abyssal))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_something_to_call(name):
    assert callable(getattr(abyssal, name))


def test_plan_can_be_called_whatever_was_imported_before():
    expected = count(ModelConfig.preset("tiny"), 512)
    assert abyssal.plan("tiny", seq_len=512) == expected
    assert abyssal.plan.count.count(ModelConfig.preset("tiny"), 512) == expected


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'LLMs'"):
        abyssal.LLMs  # noqa: B018


def test_importing_abyssal_imports_nothing_of_it():
    code = "import sys, abyssal; print([m for m in sys.modules if m.startswith('abyssal.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
