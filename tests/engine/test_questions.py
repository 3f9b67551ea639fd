"""A row becomes a question with its own sampling values, or is refused with its file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.engine.questions import Questions, digest
from abyssal.engine.request import Grammar, SamplingParams
from abyssal.errors import AbyssalError, DataError
from abyssal.tokenizer.message import Message

PARAMS = SamplingParams(max_tokens=9, seed=5)


@pytest.fixture
def written(tmp_path):
    """written(row, row): a .jsonl file of these rows, a text as it is."""

    def write(*rows: object) -> Path:
        file = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("".join(f"{line}\n" for line in lines))
        return file

    return write


def test_rows_are_questions_in_their_order_and_blank_lines_are_none(written):
    file = written({"prompt": "a"}, "", {"id": "x", "prompt": [0, 5]}, {"id": 7, "prompt": ""})
    questions = list(Questions(file, PARAMS))
    assert [question.index for question in questions] == [0, 1, 2]
    assert [question.key for question in questions] == [("index", 0), ("id", "x"), ("id", 7)]
    assert [question.asked for question in questions] == [
        {"prompt": "a"}, {"prompt": [0, 5]}, {"prompt": ""}
    ]  # fmt: skip
    assert [question.where.rpartition(":")[2] for question in questions] == ["1", "3", "4"]


def test_going_through_them_again_gives_the_same(written):
    questions = Questions(written({"prompt": "a"}, {"prompt": "b"}), PARAMS)
    assert list(questions) == list(questions)


def test_a_folder_is_read_file_by_file_with_one_count(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}))
    questions = list(Questions(tmp_path, PARAMS))
    assert [(q.index, q.asked["prompt"]) for q in questions] == [(0, "a"), (1, "b")]


def test_a_row_has_values_of_its_own_and_null_is_none(written):
    row = {
        "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": None,
        "stop": ".", "logit_bias": {"4": -1.5}, "n": 2, "bad_words": ["sea"], "thinking": True,
        "response_format": {"type": "json_object"}, "label": 3,
    }  # fmt: skip
    questions = Questions(written(row), SamplingParams(temperature=0.5))
    (question,) = questions
    assert question.messages == (Message("user", "Hi"),)
    assert question.thinking
    assert question.params == SamplingParams(
        max_tokens=3, temperature=0.5, stop=(".",), logit_bias={4: -1.5}, n=2, bad_words=("sea",),
        grammar=Grammar(kind="json_object"),
    )  # fmt: skip
    assert questions.ignored == {"label"}


def test_a_schema_travels_as_json_text(written):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    (question,) = Questions(written({"prompt": "", "response_format": wanted}), PARAMS)
    assert question.params.grammar is not None
    assert json.loads(question.params.grammar.source) == schema


def test_row_i_draws_with_the_seed_plus_i_unless_it_has_its_own(written):
    file = written({"prompt": "a"}, {"prompt": "a", "seed": 2}, {"prompt": "a"})
    assert [question.params.seed for question in Questions(file, PARAMS)] == [5, 2, 7]
    assert [q.params.seed for q in Questions(file, SamplingParams())] == [None, 2, None]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"text": "a"}, "no prompt"),
        ({"prompt": None}, "no prompt"),
        ({"prompt": "a", "messages": []}, "both a prompt and messages"),
        ({"prompt": 3}, "prompt=3"),
        ("{broken", "bad JSON"),
        ("[1]", "not a JSON object"),
        ({"prompt": "a", "id": True}, "id=true"),
        ({"prompt": "a", "id": [1]}, "id="),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens=0"),
        ({"prompt": "a", "max_tokens": "9"}, "max_tokens='9'"),
        ({"prompt": "a", "temperature": -1}, "temperature=-1"),
        ({"prompt": "a", "stop": 3}, "stop=3"),
        ({"prompt": "a", "stop": [""]}, "stop=''"),
        ({"prompt": "a", "stop_token_ids": "a"}, "stop_token_ids="),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "key 'x'"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias=[1]"),
        ({"prompt": "a", "ignore_eos": 1}, "ignore_eos=1"),
        ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format="),
        ({"prompt": "a", "response_format": {"type": ["x"]}}, "response_format="),
        ({"prompt": "a", "response_format": {"type": "json_schema"}}, "json_schema.schema"),
        ({"messages": [{"role": "king", "content": "a"}]}, "role='king'"),
        ({"messages": ["a"]}, "a message is 'a'"),
    ],
)
def test_a_row_that_is_no_question_is_refused_with_its_line(written, row, named):
    file = written({"prompt": "a"}, row)
    with pytest.raises(AbyssalError) as refused:
        list(Questions(file, PARAMS))
    assert f"{file}:2: " in str(refused.value)
    assert named in str(refused.value)


def test_a_file_that_is_not_there_is_refused_at_once():
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        Questions("nowhere.jsonl", PARAMS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["prompt", "messages", "id", "max_tokens", "stop", "logit_bias", "tools", "response_format",
     "top_k", "seed", "n", "logprobs", "stop_token_ids", "thinking", "bad_words", "other"]
)  # fmt: skip


@given(row=st.dictionaries(NAMES, JSON))
def test_whatever_a_row_holds_it_is_a_question_or_an_error_of_ours(tmp_path_factory, row):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text(json.dumps(row))
    said = ""
    try:
        (question,) = Questions(file, PARAMS)
        digest(question.asked)
    except AbyssalError as problem:
        said = str(problem)
    assert not said or said.startswith(f"{file}:1: ")


def test_a_digest_tells_what_was_asked_not_how_it_was_spelled():
    assert digest({"messages": [{"a": 1, "b": 2}]}) == digest({"messages": [{"b": 2, "a": 1}]})
    assert digest({"prompt": "a"}) != digest({"prompt": "b"})
