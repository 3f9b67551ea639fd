"""Many questions give what each gives alone, in their order, however often a run is stopped."""

import json
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.engine.bulk import Bulk, answers
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.questions import Questions
from abyssal.engine.request import SamplingParams
from abyssal.errors import DataError
from abyssal.tokenizer.chat import Message
from abyssal.tokenizer.control import USER

PARAMS = SamplingParams(max_tokens=6, seed=3)
ROWS = [
    {"prompt": "the sea", "max_tokens": 20, "ignore_eos": True},
    {"id": "b", "prompt": "深海", "max_tokens": 1},
    {"id": "chat", "messages": [{"role": "user", "content": "the fish"}]},
    {"prompt": "the " * 200},
    {"prompt": "see", "n": 3, "logprobs": 1},
    {"prompt": [0, 7, 9], "temperature": 0, "seed": 1},
    {"prompt": "dark", "stop": ["e", "a"], "max_tokens": 30},
]


@pytest.fixture(scope="module")
def exact(model, tokenizer) -> LLM:
    """To the bit the same in any company."""
    return LLM(model, tokenizer, options=EngineOptions(deterministic=True, cache_bytes=2**20))


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory) -> Path:
    return put(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


def put(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(llm: LLM, rows: Path, out: Path, passes: int | None = None, ahead: int = 512) -> None:
    """Answer rows into out; stopped after so many passes of the model, if it is told how many."""
    with Bulk(Questions(rows, PARAMS), str(out)) as bulk, closing(bulk.run(llm, "v3", ahead)) as it:
        for _ in islice(it, passes):
            pass


@pytest.fixture(scope="module")
def whole(exact, rows_file, tmp_path_factory) -> bytes:
    """The file of a run that was never stopped."""
    out = tmp_path_factory.mktemp("out") / "answers.jsonl"
    run(exact, rows_file, out)
    return out.read_bytes()


def test_each_row_is_answered_as_it_would_be_alone_and_in_its_place(exact, whole):
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(ROWS)))
    assert [row.get("id") for row in rows] == [row.get("id") for row in ROWS]
    alone = exact.generate("the sea", max_tokens=20, ignore_eos=True, seed=3)
    assert rows[0] == {
        "index": 0, "prompt": "the sea", "text": alone.text, "finish_reason": "length",
        "prompt_tokens": alone.prompt_tokens, "completion_tokens": 20, "reasoning": alone.reasoning,
    }  # fmt: skip
    chat = exact.chat([Message("user", "the fish")], max_tokens=6, seed=5)
    assert (rows[2]["text"], rows[2]["messages"]) == (chat.text, ROWS[2]["messages"])
    greedy = exact.generate([[0, 7, 9]], max_tokens=6, temperature=0)[0]
    assert rows[5]["text"] == greedy.text
    short = exact.generate("dark", max_tokens=30, seed=9, stop=["e", "a"])
    assert (rows[6]["text"], rows[6]["finish_reason"]) == (short.text, short.finish_reason)


def test_several_answers_to_a_row_stand_in_a_list(exact, whole):
    row = json.loads(whole.decode().splitlines()[4])
    alone = exact.generate(["see"], max_tokens=6, seed=7, n=3, logprobs=1)
    assert [said["text"] for said in row["answers"]] == [done.text for done in alone]
    assert [said["tokens"] for said in row["answers"]] == [done.tokens for done in alone]
    assert row["answers"][1]["logprobs"] == alone[1].logprobs
    assert row["answers"][1]["top_logprobs"] == [
        [list(x) for x in t] for t in alone[1].top_logprobs
    ]


def test_a_row_that_cannot_be_answered_says_so_and_no_other_is_touched(whole):
    rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert "at most 95" in rows[3]["error"]
    assert [i for i, row in enumerate(rows) if "error" in row] == [3]


@settings(max_examples=12)
@given(
    passes=st.lists(st.integers(1, 12), max_size=3), ahead=st.integers(1, 8), cut=st.integers(0, 60)
)
def test_stopped_anywhere_and_resumed_it_writes_the_same_bytes(
    exact, rows_file, whole, tmp_path_factory, passes, ahead, cut
):
    out = tmp_path_factory.mktemp("out") / "answers.jsonl"
    for count in passes:
        run(exact, rows_file, out, count, ahead)
        assert exact.engine.stats().pages_in_use == 0
        assert exact.engine.is_idle
        written = out.read_bytes()
        assert whole.startswith(written)
        out.write_bytes(written[: len(written) - cut])  # as a killed machine may leave it
    run(exact, rows_file, out, ahead=ahead)
    assert out.read_bytes() == whole
    run(exact, rows_file, out)
    assert out.read_bytes() == whole


def test_rows_taken_out_of_the_file_are_answered_anew_behind_the_others(
    exact, rows_file, whole, tmp_path
):
    lines = whole.splitlines(keepends=True)
    out = tmp_path / "answers.jsonl"
    out.write_bytes(b"".join([*lines[:2], *lines[3:5], *lines[6:]]))
    run(exact, rows_file, out)
    assert out.read_bytes() == b"".join([*lines[:2], *lines[3:5], *lines[6:], lines[2], lines[5]])


def test_rows_with_ids_keep_their_answers_when_they_move(exact, tmp_path):
    rows = [{"id": name, "prompt": name} for name in ("sea", "fish", "dark")]
    out = tmp_path / "answers.jsonl"
    run(exact, put(tmp_path / "rows.jsonl", rows), out)
    before = read(out)
    moved = [{"id": "new", "prompt": "deep"}, *reversed(rows)]
    run(exact, put(tmp_path / "rows.jsonl", moved), out)
    assert read(out)[:3] == before
    assert [row["id"] for row in read(out)[3:]] == ["new"]


@pytest.mark.parametrize(
    "rows",
    [[{"prompt": "another"}, *ROWS[1:]], ROWS[:3], [*ROWS[1:], ROWS[0]]],
    ids=["another prompt", "fewer rows", "another order without ids"],
)
def test_answers_to_other_questions_are_never_mixed_in(exact, whole, tmp_path, rows):
    out = tmp_path / "answers.jsonl"
    out.write_bytes(whole)
    with pytest.raises(DataError, match="belongs to another question"):
        run(exact, put(tmp_path / "rows.jsonl", rows), out)
    assert out.read_bytes() == whole


def test_a_bad_row_or_an_id_given_twice_stops_the_run_before_it_writes(exact, tmp_path):
    out = tmp_path / "answers.jsonl"
    for rows in ([*ROWS, {"prompt": 3}], [*ROWS, {"id": "b", "prompt": "a"}]):
        with pytest.raises(DataError, match=r"rows\.jsonl:8: "):
            run(exact, put(tmp_path / "rows.jsonl", rows), out)
        assert not out.exists()


def test_no_more_questions_are_under_way_than_asked_for(exact, rows_file):
    most = 0
    for _ in answers(exact, Questions(rows_file, PARAMS), ahead=2):
        stats = exact.engine.stats()
        most = max(most, stats.requests_running + stats.requests_waiting)
    assert most <= 4  # one of two rows asks for three answers


def test_progress_counts_to_the_end(exact, rows_file):
    *_, last = answers(exact, Questions(rows_file, PARAMS))
    rows = [
        row for progress in answers(exact, Questions(rows_file, PARAMS)) for row in progress.rows
    ]
    said = [said for row in rows for said in row.get("answers", [row]) if "error" not in said]
    assert (last.finished, last.failed) == (len(ROWS), 1)
    assert last.tokens == sum(one["completion_tokens"] for one in said)
    assert last.tokens_per_s == pytest.approx(last.tokens / last.elapsed_s)


def test_a_row_may_ask_for_json_and_one_that_cannot_be_compiled_is_an_error(exact, tmp_path):
    schema = {"type": "object", "properties": {"a": {"enum": [3]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    rows = [
        {"prompt": "see", "max_tokens": 40, "response_format": {
            "type": "json_schema", "json_schema": {"schema": s}}}
        for s in (schema, {"type": "nonsense"})
    ]  # fmt: skip
    out = tmp_path / "answers.jsonl"
    run(exact, put(tmp_path / "rows.jsonl", rows), out)
    good, bad = read(out)
    assert json.loads(good["text"]) == {"a": 3}
    assert bad["finish_reason"] == "error"


def test_an_answer_to_messages_ends_where_the_user_s_turn_would_begin(exact, tmp_path):
    user = exact.tokenizer.control(USER)
    asked = {"messages": [{"role": "user", "content": "a"}], "logit_bias": {str(user): 100}}
    out = tmp_path / "answers.jsonl"
    run(exact, put(tmp_path / "rows.jsonl", [asked]), out)
    (row,) = read(out)
    assert (row["text"], row["finish_reason"], row["completion_tokens"]) == ("", "stop", 1)


def test_a_call_that_nobody_read_to_its_end_does_not_disturb(exact, rows_file, whole, tmp_path):
    deltas = exact.stream("the sea", max_tokens=50, ignore_eos=True)
    next(deltas)
    deltas.close()
    run(exact, rows_file, tmp_path / "answers.jsonl")
    assert (tmp_path / "answers.jsonl").read_bytes() == whole
