"""Text in all its states: what reading keeps, what cleaning changes, what counts as the same."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.data.documents import (
    Document,
    DropReport,
    clean,
    deduplicate,
    read_documents,
    text_fault,
)
from abyssal.errors import ConfigError, DataError

STORY = "Once upon a time a small fish lived under a rock. It swam out to see the big blue sea. "
STORY += "A crab said hello, and the fish said hello too. Then they went to look for the moon."


def unique(texts: Sequence[str]) -> tuple[list[str], DropReport]:
    """The texts that stay, and the report."""
    report = DropReport()
    documents = [Document(text, f"d{number}") for number, text in enumerate(texts)]
    kept = deduplicate(report.counted(documents), report)
    return [document.source for document in kept], report


def test_each_bad_row_is_counted_with_its_place_and_the_rest_is_read(tmp_path: Path):
    path = tmp_path / "mixed.jsonl"
    rows = [
        (b'{"text": "a whole story"}', ""),
        (b'{"text": "\xff"}', "bad UTF-8"),
        (b'{"text": 7}', "field 'text' is not a string"),
        (b'{"text": null}', "field 'text' is not a string"),
        (b'{"body": "x"}', "no field 'text'"),
        (b'{"text": ""}', "empty"),
        (b'{"text": " \\n\\t\\n "}', "empty"),
        (b'{"text": "a\\u0000b"}', "null character"),
        (b'{"text": "a\\u0001\\u0002b"}', "control characters"),
        (b'{"text": "a \\ud800 b"}', "unpaired surrogate"),
        (b"{", "bad JSON"),
        (b'{"text": "the end"}', ""),
    ]
    path.write_bytes(b"\n".join(line for line, _ in rows))
    report = DropReport()
    assert [d.text for d in read_documents(path, report)] == ["a whole story", "the end"]
    expected: dict[str, list[str]] = {}
    for number, (_, fault) in enumerate(rows, 1):
        if fault:
            expected.setdefault(fault, []).append(f"{path}:{number}")
    assert report.examples == expected
    assert report.dropped == {fault: len(places) for fault, places in expected.items()}
    assert (report.total, report.kept) == (12, 2)
    assert json.loads(json.dumps(report.to_dict()))["kept"] == 2
    assert report.summary().startswith("kept 2 of 12; 2 field 'text' is not a string (")


def test_a_text_file_is_one_document_and_other_types_are_counted(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\r\n\r\ndocument", newline="")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfeh\x00i\x00")
    (tmp_path / "c.md").write_text("notes")
    (tmp_path / "not.txt.jsonl").write_text('{"text": "a row"}')
    report = DropReport()
    texts = [document.text for document in read_documents([tmp_path], report)]
    assert texts == ["one\n\ndocument", "a row"]
    assert report.dropped == {"file type not known": 1, "bad UTF-8": 1}


def test_the_field_is_the_callers_choice(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "hello", "text": 1}')
    found = list(read_documents(str(path), DropReport(), field="body"))
    assert found == [Document("hello", f"{path}:1")]


def test_a_missing_path_is_an_error_before_anything_is_read(tmp_path: Path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_documents([tmp_path / "a.txt", tmp_path / "nowhere"], DropReport())


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text: str):
    once = clean(text)
    assert clean(once) == once


@given(st.text())
def test_a_clean_text_is_normal_and_has_no_residue(text: str):
    cleaned = clean(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not {c for c in cleaned if unicodedata.category(c) == "Cc"} - {"\n", "\t"}
    assert "\n\n\n\n" not in cleaned
    assert all(line == line.rstrip() for line in cleaned.split("\n"))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("cafe\u0301", "caf\u00e9"),
        ("trailing  \nspace\t", "trailing\nspace"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\ufeffe\x07\u0301", "\u00e9"),
        ("\n\n    def f():\n\treturn 1\n", "    def f():\n\treturn 1"),
        ("\U0001f469\u200d\U0001f680 \u200f\u0633", "\U0001f469\u200d\U0001f680 \u200f\u0633"),
    ],
)
def test_cleaning_by_example(text: str, cleaned: str):
    assert clean(text) == cleaned


def test_a_bomb_of_combining_marks_is_defused():
    bomb = "e" + "\u0301" * 200_000 + "\u0316" * 200_000  # sorting these would take an hour
    assert len(clean(bomb)) <= 32
    assert len(clean("\u2500" * 100 + "e\u0301")) == 101  # a ruler of box lines is no bomb


def test_a_few_control_characters_are_forgiven_many_are_not():
    assert text_fault("x" * 500 + "\x07") == ""
    assert text_fault("x" * 50 + "\x07") == "control characters"


def test_copies_go_and_the_first_stays():
    edited = STORY.replace("small fish", "Small Fish").replace("the moon", "the sun")
    other = "Numbers are fun. Two and two make four, and four and four make eight, said the owl."
    kept, report = unique([STORY, other, STORY, edited, "fish", "fish", "fish!"])
    assert kept == ["d0", "d1", "d4", "d6"]
    assert report.dropped == {"exact duplicate": 2, "near duplicate": 1}
    assert report.examples == {
        "exact duplicate": ["d2 (of d0)", "d5 (of d4)"],
        "near duplicate": ["d3 (of d0)"],
    }
    assert (report.total, report.kept) == (7, 4)


def test_copies_from_one_source_name_are_copies():
    report = DropReport()
    twice = report.counted([Document(STORY, "corpus")] * 2)
    assert len(list(deduplicate(twice, report))) == 1


def test_texts_that_differ_in_a_sign_or_have_no_words_stay():
    texts = ["3 + 4 = 7", "3 - 4 = 7", "3 * 4 = 7", "!!!", "???", "\U0001f600", "\U0001f680"]
    assert len(unique(texts)[0]) == len(texts)


def test_scripts_without_spaces_are_compared_by_character():
    story = "从前有一条小鱼住在石头下面。它游出去看大海，遇见了一只螃蟹，它们一起去找月亮和星星。"
    kept, report = unique([story, story.replace("星星", "太阳"), story[::-1]])
    assert kept == ["d0", "d2"]
    assert report.dropped == {"near duplicate": 1}


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_that_is_no_similarity_is_refused(threshold: float):
    with pytest.raises(ConfigError, match="threshold"):
        deduplicate([], DropReport(), threshold)
