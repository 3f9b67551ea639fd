"""A training state is there whole or not at all, and what is broken is not mistaken for it."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abyssal.checkpoint import state
from abyssal.errors import CheckpointError

FILES = {"state.safetensors", "state.json", "manifest.json"}


@pytest.fixture(autouse=True)
def _disk_need_not_be_waited_for(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def content(seed=0):
    """Tensors of every type a state holds, and values as JSON knows them."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, 4, generator=generator)
    tensors = {"masters.a": matrix, "first.a": matrix.bfloat16(), "bias.0": matrix[0] + 1}
    return tensors, {"step": seed, "list": [0.1, 1e300, None], "nested": {"bad": 0}}


def save(root, step, seed=None, keep=9):
    state.save(root, step, *content(step if seed is None else seed), keep)


def assert_is(found, step, seed=None):
    tensors, values = content(step if seed is None else seed)
    assert found is not None
    assert (found.step, found.values) == (step, values)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    save(tmp_path / "trainer", 7)
    assert_is(state.latest(tmp_path / "trainer"), 7)


def test_without_a_state_there_is_none(tmp_path):
    assert state.latest(tmp_path / "nowhere") is None
    (tmp_path / "step-7").mkdir()
    (tmp_path / ".step-00000007.writing").mkdir()
    assert state.latest(tmp_path) is None


def test_the_newest_counts_however_many_digits_its_step_has(tmp_path):
    for step in (9, 10, 99_999_999, 100_000_000, 11):
        save(tmp_path, step)
        assert_is(state.latest(tmp_path), step)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_states_are_kept(tmp_path, keep):
    for step in range(10, 60, 10):
        save(tmp_path, step, keep=keep)
    assert names(tmp_path) == [f"step-000000{step}" for step in (10, 20, 30, 40, 50)[-keep:]]


def test_tensors_that_are_views_are_saved_as_what_they_show(tmp_path):
    matrix = torch.arange(12.0).reshape(3, 4)
    state.save(tmp_path, 1, {"t": matrix.T, "row": matrix[1].clone()}, {}, 1)
    found = state.latest(tmp_path)
    assert torch.equal(found.tensors["t"], matrix.T)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickled")

    for module in ("pickle", "_pickle"):
        for function in ("dump", "dumps", "load", "loads"):
            monkeypatch.setattr(f"{module}.{function}", refuse)
    for function in ("save", "load"):
        monkeypatch.setattr(torch, function, refuse)
    save(tmp_path, 3)
    assert_is(state.latest(tmp_path), 3)
    folder = tmp_path / "step-00000003"
    assert {path.name for path in folder.iterdir()} == FILES
    header = (folder / "state.safetensors").read_bytes()
    assert header[8:9] == b"{"  # a length, then JSON, then plain numbers
    assert json.loads((folder / "state.json").read_text()) == content(3)[1]


# Failures


class PowerCutError(Exception):
    """What a failing step raises in these tests."""


def cut_power_at(monkeypatch, step, error=PowerCutError):
    """Let the step-th operation on the disk fail, and all later ones that write."""
    calls = [0]

    def failing(real):
        def operation(*arguments, **options):
            calls[0] += 1
            if calls[0] >= step:
                raise error("cut")
            return real(*arguments, **options)

        return operation

    monkeypatch.setattr(state, "ShardFile", failing(state.ShardFile))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "mkdir", failing(os.mkdir))
    monkeypatch.setattr(Path, "write_text", failing(Path.write_text))
    monkeypatch.setattr(shutil, "rmtree", failing(shutil.rmtree))
    return calls


@pytest.mark.parametrize("step", [10, 15])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_save_that_fails_anywhere_leaves_the_old_state_or_the_new_one(
    tmp_path, monkeypatch, step, keep
):
    """Also where the same step is saved again: after a rewind, or stopped at once."""
    outcomes = []
    for at in range(1, 50):
        root = tmp_path / str(at)
        save(root, 5, keep=keep)
        save(root, 10, keep=keep)
        with monkeypatch.context() as patch:
            calls = cut_power_at(patch, at)
            with contextlib.suppress(PowerCutError):
                save(root, step, seed=99, keep=keep)
        found = state.latest(root)
        outcomes.append(found is not None and found.values["step"] == 99)
        assert_is(found, *((step, 99) if outcomes[-1] else (10,)))
        save(root, 20, keep=keep)  # and the next attempt succeeds and cleans up
        assert_is(state.latest(root), 20)
        assert len([name for name in names(root) if name.startswith("step")]) == keep
        if calls[0] < at:
            break
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) > 5
    assert outcomes[-1]


def test_a_disk_that_does_not_take_a_state_is_reported_in_one_sentence(tmp_path, monkeypatch):
    save(tmp_path, 5)
    for at in range(1, 8):
        with monkeypatch.context() as patch:
            cut_power_at(patch, at, lambda _: OSError(28, "No space left on device"))
            with pytest.raises(
                CheckpointError, match=r"step-00000006: cannot be written .*No space"
            ):
                save(tmp_path, 6)
        assert_is(state.latest(tmp_path), 5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(sorted(FILES)), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_state_with_a_flipped_bit_is_refused_aloud_and_the_one_before_is_used(
    tmp_path, caplog, file, place, bit
):
    root = tmp_path / "trainer"
    shutil.rmtree(root, ignore_errors=True)
    save(root, 5)
    save(root, 10)
    path = root / "step-00000010" / file
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)
    caplog.clear()
    found = state.latest(root)
    if file == "manifest.json" and found.step == 10:
        assert_is(found, 10)  # white space of the manifest, at most
    else:
        assert_is(found, 5)
        assert "step-00000010" in caplog.text
        assert file in caplog.text or "manifest.json" in path.name


@pytest.mark.parametrize("file", sorted(FILES))
@pytest.mark.parametrize("harm", ["gone", "cut", "empty"])
def test_a_state_with_a_missing_or_shortened_file_is_refused_aloud(tmp_path, caplog, file, harm):
    save(tmp_path, 5)
    save(tmp_path, 10)
    path = tmp_path / "step-00000010" / file
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(data[: len(data) // 2 if harm == "cut" else 0])
    assert_is(state.latest(tmp_path), 5)
    assert f"{tmp_path / 'step-00000010'}: {file} not as written" in caplog.text


def test_where_all_states_are_broken_there_is_none_and_each_was_named(tmp_path, caplog):
    for step in (5, 10):
        save(tmp_path, step)
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("{}")
    assert state.latest(tmp_path) is None
    assert caplog.text.count("not as written") == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_broken_newer_state_never_drives_out_a_whole_one(tmp_path, keep):
    for step in (5, 10, 20):
        save(tmp_path, step)
    (tmp_path / "step-00000020" / "state.json").write_text("{}")
    assert_is(state.latest(tmp_path), 10)
    save(tmp_path, 15, keep=keep)
    assert_is(state.latest(tmp_path), 15)
    assert names(tmp_path) == ["step-00000010", "step-00000015"][-keep:]
