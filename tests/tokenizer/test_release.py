"""Tokenizer files: what is saved loads as the same, and what is broken says so in one line."""

import gzip
import json
from pathlib import Path

import pytest

from abyssal.errors import DataError
from abyssal.tokenizer.bpe import BOS, THINK, Tokenizer


def test_a_saved_tokenizer_loads_as_the_same_one(tiny, texts, tmp_path):
    tiny.save(tmp_path / "folder")
    plain = tmp_path / "folder" / "tokenizer.json"
    packed = tmp_path / "packed.tokenizer.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    for path in (tmp_path / "folder", plain, packed, str(packed)):
        loaded = Tokenizer.load(path)
        assert loaded.sha256 == tiny.sha256
        assert loaded.encode_batch(texts) == tiny.encode_batch(texts)
        assert loaded.control_ids == tiny.control_ids


def test_merges_as_pairs_are_the_same_tokenizer(tiny, tmp_path):
    tiny.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
    path.write_text(json.dumps(content), "utf-8")
    assert Tokenizer.load(path).sha256 == tiny.sha256


def test_a_file_that_cuts_or_pads_does_not_cut_our_text(tiny, tmp_path):
    tiny.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(content), "utf-8")
    assert Tokenizer.load(path).encode("fish and fish") == tiny.encode("fish and fish")


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tiny, tmp_path, monkeypatch):
    tiny.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"tokenizer.json", "tokenizer_config.json"}

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        tiny.save(tmp_path, layout="r1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def change(key, value):
    """A change to the content of a tokenizer.json, for the cases below."""

    def apply(content):
        *outer, last = key.split(".")
        for name in outer:
            content = content[name]
        content[last] = value

    return apply


def without_bos(content):
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != BOS]
    del content["model"]["vocab"][BOS]


def reachable_think(content):
    think = next(t for t in content["added_tokens"] if t["content"] == THINK)
    content["model"]["vocab"][THINK] = think["id"]


def two_tokens_of_one_id(content):
    content["added_tokens"][-1]["id"] = 5


def without_a_byte(content):
    content["model"]["merges"] = []
    content["model"]["vocab"] = {
        text: token for text, token in content["model"]["vocab"].items() if text != "!"
    }


def sentencepiece_token(content):
    content["model"]["vocab"]["\u2581the"] = 399_999


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change("model", None), "no model"),
        (change("model.type", "Unigram"), "'Unigram'"),
        (change("model.vocab", {"a": "b"}), "vocabulary"),
        (change("model.merges", ["a b c"]), "merges"),
        (change("model.merges", ["a zzz"]), "cannot be used"),
        (change("added_tokens", [{"content": BOS}]), "added_tokens"),
        (change("pre_tokenizer", {"type": "Nobody"}), "cannot be used"),
        (without_bos, "lacks the control token <\uff5cbegin"),
        (reachable_think, "where text can reach it"),
        (two_tokens_of_one_id, "one id to two tokens"),
        (without_a_byte, "lacks 1 of the 256"),
        (sentencepiece_token, "byte alphabet"),
    ],
)
def test_a_file_with_the_wrong_content_is_refused_in_one_line(tiny, tmp_path, damage, complaint):
    tiny.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    damage(content)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError) as refusal:
        Tokenizer.load(tmp_path)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


PACKED = gzip.compress(b'{"version": "1.0"}' * 100, mtime=0)


@pytest.mark.parametrize(
    ("name", "raw", "complaint"),
    [
        ("tokenizer.json", b"", "not JSON"),
        ("tokenizer.json", b"[1, 2", "not JSON"),
        ("tokenizer.json", b"\xff\xfe\x00", "not JSON"),
        ("tokenizer.json", b"[]", "no model"),
        ("tokenizer.json.gz", PACKED[: len(PACKED) // 2], "cannot be read"),
        ("tokenizer.json.gz", b"{}", "cannot be read"),
        ("tokenizer.json.gz", PACKED[:12] + b"\xff" * 20 + PACKED[32:], "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, name, raw, complaint):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as refusal:
        Tokenizer.load(tmp_path / name)
    assert complaint in str(refusal.value)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.json"):
        with pytest.raises(DataError, match="does not exist; give a folder"):
            Tokenizer.load(path)
