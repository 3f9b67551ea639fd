"""A plan for a preset or for a folder."""

import pytest

from abyssal.config import ModelConfig
from abyssal.errors import CheckpointError, ConfigError
from abyssal.plan import plan
from abyssal.plan.count import count


def test_a_folder_costs_what_its_configuration_costs(tmp_path):
    config = ModelConfig.preset("small")
    config.save(tmp_path)
    assert plan(tmp_path) == plan(str(tmp_path)) == plan("small") == count(config)


def test_what_is_neither_preset_nor_folder_is_told_the_presets(tmp_path):
    with pytest.raises(ConfigError, match=r"deepsek-v3: neither .* deepseek-v3, .* small"):
        plan("deepsek-v3")
    with pytest.raises(CheckpointError, match="no such file"):
        plan(tmp_path)


def test_a_sequence_has_at_least_one_token():
    with pytest.raises(ConfigError, match="seq_len=0, expected at least 1"):
        plan("tiny", seq_len=0)
