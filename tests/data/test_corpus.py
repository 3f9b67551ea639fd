"""The shipped text: complete, attributed, small, and honest about what is held out."""

import re

import pytest

from abyssal.data import corpus
from abyssal.errors import DataError

SOURCES = (corpus.FOLDER / "SOURCES.md").read_text(encoding="utf-8")
SHIPPED = sorted(path.name for path in corpus.FOLDER.iterdir() if path.is_file())


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text).lower().strip()


@pytest.mark.parametrize("name", corpus.names())
def test_every_file_is_what_the_manifest_promises(name):
    corpus.check(name)
    assert sum(1 for _ in corpus.rows(name)) == corpus.manifest()[name].records


@pytest.mark.parametrize("file", [name for name in SHIPPED if name.endswith((".gz", ".toml"))])
def test_every_data_file_has_a_source_entry_with_a_license(file):
    entries = re.split(r"^## ", SOURCES, flags=re.MULTILINE)
    entry = next((text for text in entries if text.startswith(f"`{file}`")), "")
    for field in ("Source:", "License:", "Changed:"):
        assert field in entry, f"{file} lacks {field}"


def test_every_jsonl_file_is_in_the_manifest():
    listed = {entry.file for entry in corpus.manifest().values()}
    assert listed == {name for name in SHIPPED if name.endswith(".gz")}


def test_the_corpus_weighs_less_than_12_megabytes():
    assert sum((corpus.FOLDER / name).stat().st_size for name in SHIPPED) < 12_000_000


def test_no_validation_story_is_in_any_training_text():
    valid = {normal(story) for story in corpus.stories("valid")}
    openings = {story[:150] for story in valid}
    for name in ("tinystories_train", "storybooks", "fairy_tales"):
        for text in corpus.texts(name):
            story = normal(text)
            assert story not in valid
            assert story[:150] not in openings


def test_every_storybook_names_its_author_and_its_license():
    for row in corpus.rows("storybooks"):
        assert row["author"], row["title"]
        assert row["license"] in ("CC-BY", "Public-Domain"), row["title"]


def test_fairy_tales_come_easiest_first():
    lengths = [float(str(row["asl"])) for row in corpus.rows("fairy_tales")]
    assert lengths == sorted(lengths)
    assert lengths[-1] < 20


def test_no_text_is_empty_or_twice():
    for name in ("tinystories_train", "tinystories_valid", "storybooks", "fairy_tales"):
        texts = corpus.texts(name)
        assert all(text.strip() for text in texts)
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["chatterbot", "facts_qa"])
def test_conversations_alternate_and_end_with_the_assistant(name):
    for row in corpus.rows(name):
        messages = row["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert all(message["content"].strip() for message in messages)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(DataError, match="fairy_tales"):
        corpus.path("fairytales")


def test_conversations_are_not_texts():
    with pytest.raises(DataError, match="read_conversations"):
        corpus.texts("chatterbot")


def test_a_changed_file_is_noticed(tmp_path, monkeypatch):
    for name in ("manifest.json", "chatterbot.jsonl.gz"):
        (tmp_path / name).write_bytes((corpus.FOLDER / name).read_bytes())
    monkeypatch.setattr(corpus, "FOLDER", tmp_path)
    corpus.check("chatterbot")
    (tmp_path / "chatterbot.jsonl.gz").write_bytes(b"something else")
    with pytest.raises(DataError, match="SHA-256"):
        corpus.check("chatterbot")
    (tmp_path / "chatterbot.jsonl.gz").unlink()
    with pytest.raises(DataError, match="missing"):
        corpus.check("chatterbot")
