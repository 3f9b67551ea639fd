"""What a model costs, before anyone builds it. No torch here.

The package itself can be called, because ``abyssal.plan`` is also a name of the public API:
``abyssal.plan("deepseek-v3")`` is ``plan("deepseek-v3")``.
"""

import sys
from pathlib import Path
from types import ModuleType

from abyssal.config import PRESETS, ModelConfig
from abyssal.errors import ConfigError
from abyssal.plan.count import Counts
from abyssal.plan.count import count as count_config  # plan.count stays the module


def plan(model: str | Path, seq_len: int = 4096) -> Counts:
    """Parameters, cache bytes and FLOPs of a preset such as ``deepseek-v3``, or of a model folder.

    seq_len is the training length in tokens that the FLOPs are counted at.

    Raises:
        ConfigError: there is neither such a preset nor such a folder, or seq_len is not positive.
        CheckpointError: the folder has no readable ``config.json``.
    """
    if seq_len < 1:
        raise ConfigError(f"seq_len={seq_len}, expected at least 1 token")
    return count_config(config_of(model), seq_len)


def config_of(model: str | Path) -> ModelConfig:
    """The configuration of a preset or a model folder; raises as `plan` does."""
    if isinstance(model, str) and model in PRESETS:
        return ModelConfig.preset(model)
    if not Path(model).is_dir():
        raise ConfigError(
            f"{model}: neither a model folder nor a preset; the presets are {', '.join(PRESETS)}"
        )
    return ModelConfig.load(model)


class _Plan(ModuleType):
    """This package as a function."""

    def __call__(self, model: str | Path, seq_len: int = 4096) -> Counts:
        return plan(model, seq_len)


sys.modules[__name__].__class__ = _Plan
