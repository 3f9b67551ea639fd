"""Rotary frequencies and YaRN, against numbers worked out by hand for the released model."""

import dataclasses
import math

import pytest
import torch

from abyssal.config import ModelConfig, RopeScaling
from abyssal.model.rope import cos_sin, inverse_frequencies, softmax_scale

RELEASED = ModelConfig.preset("deepseek-v3")
PLAIN = dataclasses.replace(RELEASED, rope_scaling=None, max_position_embeddings=4096)


def test_without_yarn_pair_i_turns_by_theta_to_the_minus_2i_over_64():
    expected = [10000 ** (-2 * i / 64) for i in range(32)]
    torch.testing.assert_close(inverse_frequencies(PLAIN), torch.tensor(expected))


@pytest.mark.parametrize(
    ("pair", "radians"),
    [
        (0, 1.0),
        (9, 7.498942093e-02),
        (10, 10000 ** (-20 / 64)),
        (11, 3.900692657e-02),
        (16, 5.5e-03),
        (22, 1.778279410e-04),
        (23, 3.333803580e-05),
        (31, 3.333803580e-06),
    ],
)
def test_yarn_of_the_released_model_has_these_frequencies(pair, radians):
    assert float(inverse_frequencies(RELEASED)[pair]) == pytest.approx(radians, rel=2e-6)


def test_yarn_keeps_fast_pairs_and_slows_the_slow_ones_by_factor():
    ratio = inverse_frequencies(PLAIN) / inverse_frequencies(RELEASED)
    torch.testing.assert_close(ratio[:11], torch.ones(11))
    torch.testing.assert_close(ratio[23:], torch.full((9,), 40.0))
    assert (ratio.diff() >= -1e-4).all()


def test_the_softmax_scale_of_the_released_model():
    assert softmax_scale(PLAIN) == pytest.approx(0.0721688, rel=1e-6)
    assert softmax_scale(RELEASED) == pytest.approx(0.1352338, rel=1e-6)


def test_equal_mscales_leave_cos_and_sin_alone():
    cos, sin = cos_sin(RELEASED, torch.tensor([0, 5, 163839]))
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones(3, 32))
    assert torch.equal(cos[0], torch.ones(32))


def test_unequal_mscales_scale_cos_and_sin_by_their_ratio():
    scaling = RopeScaling(mscale=0.707, mscale_all_dim=0.5)
    cos, sin = cos_sin(dataclasses.replace(RELEASED, rope_scaling=scaling), torch.arange(3))
    ratio = (0.0707 * math.log(40) + 1) / (0.05 * math.log(40) + 1)
    torch.testing.assert_close(cos.square() + sin.square(), torch.full((3, 32), ratio**2))


def test_a_factor_of_one_changes_nothing():
    idle = RopeScaling(factor=1.0)
    config = dataclasses.replace(PLAIN, rope_scaling=idle)
    torch.testing.assert_close(inverse_frequencies(config), inverse_frequencies(PLAIN))
    assert softmax_scale(config) == softmax_scale(PLAIN)


def test_angles_at_the_end_of_the_context_are_exact_to_float32():
    position = 163839
    cos, _ = cos_sin(RELEASED, torch.tensor([position]))
    exact = torch.cos(position * inverse_frequencies(RELEASED).double())
    torch.testing.assert_close(cos[0].double(), exact, atol=2e-2, rtol=0)


def test_linear_scaling_reads_positions_that_lie_factor_times_as_dense():
    linear = RopeScaling(type="linear", factor=4.0, original_max_position_embeddings=4096)
    config = dataclasses.replace(RELEASED, rope_scaling=linear, max_position_embeddings=16384)
    positions = torch.arange(4096)
    for scaled, plain in zip(
        cos_sin(config, 4 * positions), cos_sin(PLAIN, positions), strict=True
    ):
        assert torch.equal(scaled, plain)
    assert softmax_scale(config) == softmax_scale(PLAIN)
