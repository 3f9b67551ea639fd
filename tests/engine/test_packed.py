"""The packed file beside a model folder: made once, then mapped, remade when it is outdated."""

import os
from pathlib import Path

import pytest
import torch

from abyssal.engine import packed, packing
from abyssal.engine.llm import LLM
from abyssal.errors import CheckpointError
from abyssal.kernels import stack
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

pytestmark = pytest.mark.skipif(not stack.is_available(), reason="no native kernels here")

PROMPTS = ["the deep sea", "fish in the dark", "深海"]


@pytest.fixture
def folder(taught: DeepSeekV3, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    taught.save(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def texts(llm: LLM) -> list[str]:
    answers = llm.generate(PROMPTS, max_tokens=12, temperature=0)
    return [answer.text for answer in answers]


def forbid_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(packing, "of_folder", refuse)


def test_folder_and_memory_give_the_same(
    folder: Path, taught: DeepSeekV3, tokenizer: Tokenizer
) -> None:
    assert texts(LLM(folder)) == texts(LLM(taught, tokenizer))


def test_second_start_maps_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = texts(LLM(folder))
    forbid_packing(monkeypatch)
    assert texts(LLM(folder)) == first


def test_new_weights_are_packed_anew(folder: Path, taught: DeepSeekV3) -> None:
    LLM(folder)
    before = (folder / packed.FILE).stat().st_mtime_ns
    changed = DeepSeekV3(taught.config)
    changed.load_state_dict(taught.state_dict())
    with torch.no_grad():
        changed.lm_head.weight.neg_()
    changed.save(folder)
    fresh = texts(LLM(folder))
    assert (folder / packed.FILE).stat().st_mtime_ns != before
    assert fresh != texts(LLM(taught, Tokenizer.load(folder)))


@pytest.mark.parametrize("length", [0, 5, 300])
def test_a_cut_off_file_is_made_anew(folder: Path, length: int) -> None:
    first = texts(LLM(folder))
    path = folder / packed.FILE
    os.truncate(path, length)
    assert texts(LLM(folder)) == first
    assert path.stat().st_size > 300


def test_where_nothing_can_be_written_a_warning_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    answers = texts(LLM(folder))
    assert "No space left on device" in caplog.text
    assert [path.name for path in folder.iterdir() if "packed" in path.name] == []
    monkeypatch.undo()
    assert texts(LLM(folder)) == answers


def test_another_precision_is_another_file(folder: Path) -> None:
    LLM(folder)
    LLM(folder, dtype=torch.bfloat16)
    assert {path.name for path in folder.glob("packed*")} == {packed.FILE, "packed-bfloat16.bin"}


def test_a_broken_folder_is_told(folder: Path) -> None:
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(CheckpointError, match=r"no weights|not in this folder"):
        LLM(folder)
    assert not list(folder.glob("packed*"))
