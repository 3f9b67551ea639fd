"""Configurations come back from what they wrote, in either spelling; what cannot be is refused."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.config import PRESETS, ModelConfig, RopeScaling
from abyssal.errors import CheckpointError, ConfigError

V3 = PRESETS["deepseek-v3"]
SCALINGS = (
    None,
    RopeScaling(),
    RopeScaling(factor=4.0, beta_fast=16.0, mscale=0.5, original_max_position_embeddings=1 << 17),
    RopeScaling(type="linear", factor=40.0),
)


def published(**changes):
    return V3.to_dict() | changes


@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from(SCALINGS),
    st.sampled_from([None, 1, 96]),
    st.floats(1.0, 1e7),
)
def test_what_is_written_is_read_again(name, scaling, q_lora_rank, theta):
    config = dataclasses.replace(
        PRESETS[name], rope_scaling=scaling, q_lora_rank=q_lora_rank, rope_theta=theta,
        max_position_embeddings=4096,
    )  # fmt: skip
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("without", ["rope_scaling", "rope_parameters"])
def test_either_spelling_of_the_rotary_keys_is_enough(without):
    said = published()
    del said[without]
    assert ModelConfig.from_dict(said) == V3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scoring_func": "softmax"}, "scoring_func='softmax', but Abyssal computes DeepSeek-V3"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ({"rope_scaling": 5}, "rope_scaling=5, expected an object or null"),
        ({"rope_parameters": ["yarn"]}, r"rope_parameters=\['yarn'\], expected an object"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope type 'llama3', expected 'yarn'"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 40.0}},
            "rope_scaling lacks 'original_max_position_embeddings'",
        ),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            "rope_scaling has beta_fast=32.0, which type 'linear' does not use",
        ),
        ({"n_routed_experts": 250}, r"250 is not divisible by n_group=8 \(250 = 31 \* 8 \+ 2\)"),
        ({"n_group": 256}, "256 / 256 = 1 expert a group, expected at least 2"),
        ({"topk_group": 9}, "topk_group=9, but there are only n_group=8 groups"),
        ({"num_experts_per_tok": 129}, r"can reach only 4 \* 32 = 128 experts"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim=63, expected an even size"),
        ({"max_position_embeddings": 163841}, "scaling reaches .* = 163840; raise rope_scaling"),
        ({"first_k_dense_replace": 62}, "only num_hidden_layers=61 blocks"),
        ({"hidden_size": 0}, "hidden_size=0, expected an integer of at least 1"),
        ({"hidden_size": 7168.0}, "hidden_size=7168.0, expected an integer"),
        ({"q_lora_rank": 0}, "q_lora_rank=0, expected a positive integer or null"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan, expected a positive number"),
        ({"eos_token_id": 129280}, "eos_token_id=129280, but vocab_size=129280"),
    ],
)
def test_what_cannot_be_is_refused_with_its_value(changes, said):
    with pytest.raises(ConfigError, match=said):
        ModelConfig.from_dict(published(**changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file; expected a model folder"),
        ("{", "not valid JSON"),
        ("[1]", "expected one JSON object, found list"),
        ('{"model_type": "llama"}', "config.json: model_type='llama'"),
        ('{"model_type": "deepseek_v3"}', "config.json lacks 'vocab_size'"),
    ],
)
def test_a_folder_without_a_readable_config_is_refused(text, said, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((CheckpointError, ConfigError), match=said):
        ModelConfig.load(tmp_path)
