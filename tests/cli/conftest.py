"""A small model folder, and lines that come through a pipe."""

import io

import pytest


@pytest.fixture(scope="session")
def folder(make_folder) -> str:
    """A model folder with a random model and a tokenizer of a few words."""
    return str(make_folder(["the deep sea is dark and the fish see\n" * 4], 320))


@pytest.fixture
def typed(monkeypatch):
    """typed("a", "b"): lines that come through a pipe."""
    return lambda *lines: monkeypatch.setattr(
        "sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines))
    )
