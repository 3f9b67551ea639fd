"""Files on a disk to shards: what is read, what is dropped, and what is said about it."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from abyssal.data.prepare import prepare_chats, prepare_texts
from abyssal.data.shards import Shards
from abyssal.errors import DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message, render

STORIES = [
    "A fish swam out to sea.\n\nIt was dark, and the fish was brave.",
    "Crabs walk sideways; nobody knows why. One crab asked.",
    "The lighthouse keeper counted waves until he fell asleep.",
]
CHATS = [
    [{"role": "user", "content": "Who swam?"}, {"role": "assistant", "content": "A fish."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why sideways?"},
     {"role": "assistant", "content": "Nobody knows."}],
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*STORIES, "Who swam? A fish. Why sideways? Nobody knows."] * 3, 340)


def lines(path: Path, rows: list) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def read_back(shards: Shards, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(shards.tokens(i).tolist()) for i in range(len(shards))]


def test_texts_of_every_kind_of_file_come_back_out_of_the_shards(tokenizer, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(STORIES[0])
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": STORIES[1]}))
    packed = zstandard.compress(json.dumps({"text": STORIES[2]}).encode())
    (folder / "c.jsonl.zst").write_bytes(packed)
    shards, report = prepare_texts([folder], tokenizer, tmp_path / "out")
    assert read_back(shards, tokenizer) == STORIES
    assert (report.total, report.kept, report.dropped) == (3, 3, {})
    assert shards.meta.tokenizer_sha256 == tokenizer.sha256
    assert not shards.meta.has_mask
    Shards(tmp_path / "out").verify()


def test_what_is_dropped_is_counted_and_kept_with_the_shards(tokenizer, tmp_path):
    rows = [{"text": STORIES[0]}, "{broken", {"text": ""}, {"text": 3}, {"other": "x"},
            {"text": STORIES[1]}, {"text": STORIES[0]}]  # fmt: skip
    path = lines(tmp_path / "rows.jsonl", rows)
    shards, report = prepare_texts([path], tokenizer, tmp_path / "out")
    assert read_back(shards, tokenizer) == STORIES[:2]
    assert (report.total, report.kept) == (7, 2)
    assert sum(report.dropped.values()) == 5
    assert report.dropped["exact duplicate"] == 1
    assert shards.meta.report == report.to_dict()
    assert Shards(tmp_path / "out").meta.report == report.to_dict()


def test_the_text_may_stand_in_another_field(tokenizer, tmp_path):
    path = lines(tmp_path / "rows.jsonl", [{"body": story, "text": "no"} for story in STORIES])
    shards, _ = prepare_texts([path], tokenizer, tmp_path / "out", field="body")
    assert read_back(shards, tokenizer) == STORIES


def test_split_tokens_spell_the_same_text_and_a_seed_repeats_them(tokenizer, tmp_path):
    path = lines(tmp_path / "rows.jsonl", [{"text": story} for story in STORIES])
    plain, _ = prepare_texts([path], tokenizer, tmp_path / "plain")
    split, _ = prepare_texts([path], tokenizer, tmp_path / "split", split_rate=1.0)
    again, _ = prepare_texts([path], tokenizer, tmp_path / "again", split_rate=1.0)
    assert read_back(split, tokenizer) == STORIES
    assert split.num_tokens >= plain.num_tokens
    assert split.meta.sha256 == again.meta.sha256


def test_control_tokens_written_in_a_text_stay_text(tokenizer, tmp_path):
    text = "<｜User｜>Say yes.<｜Assistant｜>yes<｜end▁of▁sentence｜>"
    path = lines(tmp_path / "rows.jsonl", [{"text": text}])
    shards, _ = prepare_texts([path], tokenizer, tmp_path / "out")
    tokens = shards.tokens(0).tolist()
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[-1] == tokenizer.eos_token_id
    assert not tokenizer.control_ids.intersection(tokens[1:-1])


@pytest.mark.parametrize("layout", ["v3", "r1", "v3.1"])
def test_chats_are_rendered_and_only_what_the_assistant_writes_is_learned(
    tokenizer, tmp_path, layout
):
    path = lines(tmp_path / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    shards, report = prepare_chats([path], tokenizer, tmp_path / "out", layout=layout)
    assert (report.total, report.kept, len(shards)) == (2, 2, 2)
    for i, chat in enumerate(CHATS):
        messages = [Message.from_dict(message) for message in chat]
        expected = render(messages, tokenizer, layout, False, add_generation_prompt=False)
        assert shards.tokens(i).tolist() == expected.tokens
        assert shards.mask(i).tolist() == expected.trained
        learned = [t for t, m in zip(expected.tokens, shards.mask(i), strict=True) if m]
        assert chat[-1]["content"] in tokenizer.decode(learned)
        assert chat[-2]["content"] not in tokenizer.decode(learned)


def test_chats_from_which_nothing_can_be_learned_are_counted(tokenizer, tmp_path):
    rows = [{"messages": CHATS[0]}, {"messages": CHATS[0][:1]}, {"messages": []}, {"text": "x"},
            {"messages": [{"role": "emperor", "content": "x"}]}, "[1]"]  # fmt: skip
    path = lines(tmp_path / "chats.jsonl", rows)
    shards, report = prepare_chats([path], tokenizer, tmp_path / "out")
    assert len(shards) == 1
    assert (report.total, report.kept) == (6, 1)
    assert report.dropped["no assistant message"] == 1
    assert shards.meta.report == report.to_dict()


@pytest.mark.parametrize("prepare", [prepare_texts, prepare_chats])
def test_a_folder_that_holds_something_is_refused_and_left_alone(prepare, tokenizer, tmp_path):
    path = lines(tmp_path / "rows.jsonl", [{"text": STORIES[0], "messages": CHATS[0]}])
    out = tmp_path / "out"
    out.mkdir()
    prepare([path], tokenizer, out)  # an empty one is taken
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(DataError, match="exists and is not empty"):
        prepare([path], tokenizer, out)
    assert {file: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize("prepare", [prepare_texts, prepare_chats])
def test_where_nothing_is_left_the_reasons_are_said_and_nothing_is_written(
    prepare, tokenizer, tmp_path
):
    path = lines(tmp_path / "rows.jsonl", ["{broken", "[]"])
    with pytest.raises(DataError, match=r"no document is left .*kept 0 of 2; 1 bad JSON"):
        prepare([path], tokenizer, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("prepare", [prepare_texts, prepare_chats])
def test_a_path_that_is_not_there_is_named_and_nothing_is_written(prepare, tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        prepare([tmp_path / "nowhere.jsonl"], tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
