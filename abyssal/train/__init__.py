"""Training: one loop for every stage, recipes in, model folders out.

The package itself can be called, because ``abyssal.train`` is also a name of the public API:
``abyssal.train("tiny/base")`` is ``training.train("tiny/base")``.
"""

import sys
from pathlib import Path
from types import ModuleType


class _Train(ModuleType):
    """This package as a function."""

    def __call__(self, recipe: str | Path, **overrides: object) -> Path:
        from abyssal.train.training import train

        return train(recipe, **overrides)


sys.modules[__name__].__class__ = _Train
