"""A small random model in float32, in a folder and loaded."""

from pathlib import Path

import pytest

from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions

WORDS = ["the deep sea is dark and the fish who did see what it was 1 2 3 + - = 深海 黑暗\n" * 4]


@pytest.fixture(scope="session")
def folder(make_folder) -> Path:
    sizes = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "max_position_embeddings": 128}
    return make_folder(WORDS, 340, **sizes)


@pytest.fixture(scope="session")
def evaluated(folder) -> LLM:
    return LLM(folder, options=EngineOptions(deterministic=True))
