"""Whatever a dying machine leaves of a file of answers, the next run finds its whole lines."""

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.answer_file import AnswerFile
from abyssal.engine.questions import digest
from abyssal.errors import DataError

ROWS = [
    {"index": 0, "prompt": "the sea", "text": " is 深\n海"},
    {"index": 1, "id": "b", "prompt": "a", "text": ""},
    {"index": 2, "id": 9, "messages": [{"role": "user", "content": "Hi"}], "text": "x"},
]


def write(path: Path, rows: list[dict]) -> None:
    file = AnswerFile(path)
    file.append(rows)
    file.close()


def reopened(path: Path) -> dict:
    file = AnswerFile(path)
    file.close()
    return file.answered


def test_what_was_written_is_found_again_by_id_or_place(tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path, ROWS)
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    assert reopened(path) == {
        ("index", 0): digest({"prompt": "the sea"}),
        ("id", "b"): digest({"prompt": "a"}),
        ("id", 9): digest({"messages": ROWS[2]["messages"]}),
    }


@given(cut=st.integers(0, 250))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_can_be_completed(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    write(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    left = len(reopened(path))
    assert left == whole[:cut].count(b"\n")
    write(path, ROWS[left:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    ["notes to myself", "notes\n", '{"prompt": "a"}\n', '{"index": "0"}\n', "[1]\n", "{broken\n",
     '{"index": 0, "id": [1]}\n', '{"prompt": "a"}'],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"answers\.jsonl:1: not an answer"):
        AnswerFile(path)
    assert path.read_text() == content


def test_two_runs_cannot_write_the_same_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    file = AnswerFile(path)
    with pytest.raises(DataError, match="another run is writing it"):
        AnswerFile(path)
    file.close()
    reopened(path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("", "choose a file"), ("/dev/full", "choose a file"), ("gone/a.jsonl", "cannot be written")],
)
def test_a_place_for_no_file_is_refused(tmp_path, name, remedy):
    with pytest.raises(DataError, match=remedy):
        AnswerFile(tmp_path / name)


def test_a_full_disk_is_an_error_of_ours(tmp_path):
    path = tmp_path / "answers.jsonl"
    file = AnswerFile(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
    try:
        with pytest.raises(DataError, match="make room"):
            file.append(ROWS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        file.close()
    assert reopened(path) == {}
