"""Abyssal: DeepSeek-V3 from raw text to a chat.

Nine names are the public API, each imported when first asked for, so that ``import abyssal`` costs
nothing; all else is imported from where it lives (``from abyssal.model.moe import Gate``).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abyssal.batch import Batch as Batch
    from abyssal.config import ModelConfig as ModelConfig
    from abyssal.engine.llm import LLM as LLM
    from abyssal.engine.request import SamplingParams as SamplingParams
    from abyssal.model.transformer import DeepSeekV3 as DeepSeekV3
    from abyssal.model.transformer import load as load
    from abyssal.plan import plan as plan
    from abyssal.tokenizer.chat import Message as Message
    from abyssal.train.training import train as train

__version__ = "0.1.0"

_HOMES = {
    "Batch": "abyssal.batch",
    "DeepSeekV3": "abyssal.model.transformer",
    "LLM": "abyssal.engine.llm",
    "Message": "abyssal.tokenizer.chat",
    "ModelConfig": "abyssal.config",
    "SamplingParams": "abyssal.engine.request",
    "load": "abyssal.model.transformer",
    # These two are packages that can be called: once imported, a package hides any function of its
    # name here, so the package itself has to be the function.
    "plan": "abyssal.plan",
    "train": "abyssal.train",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'abyssal' has no attribute {name!r}")
    from abyssal.collector import paused  # `import abyssal` imports nothing of it

    with paused():
        home = import_module(_HOMES[name])
    return home if home.__name__ == f"abyssal.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
