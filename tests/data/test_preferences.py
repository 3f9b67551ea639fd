"""Comparisons: rows read or refused, answers marked, and shipped pairs that keep their promise."""

import json

import pytest

from abyssal.data import corpus
from abyssal.data.documents import DropReport
from abyssal.data.preferences import (
    LENGTHS,
    encode_answer,
    ending_pairs,
    read_comparisons,
    subject_pairs,
)
from abyssal.data.requests import Requests
from abyssal.data.subjects import find_subjects, opening_of, singular, words_of
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message, ToolCall


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the deep sea is dark and the fish see the crab\n" * 4], 330)


def read(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    report = DropReport()
    return list(read_comparisons(path, report)), report


def test_pairs_and_single_answers_in_every_shape(tmp_path):
    user = {"role": "user", "content": "hi"}
    said = {"role": "assistant", "content": "yes"}
    found, report = read(
        tmp_path,
        {"prompt": [user], "chosen": "yes", "rejected": "no"},
        {"prompt": "hi", "chosen": said, "rejected": [said]},
        {"prompt": [user], "response": "yes", "label": False},
    )
    assert report.dropped == {}
    assert found[0].prompt == found[1].prompt == [Message("user", "hi")]
    assert found[0].answers == ([Message("assistant", "yes")], [Message("assistant", "no")])
    assert found[1].answers[0] == found[1].answers[1]
    assert (len(found[2].answers), found[2].good) == (1, False)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "hi", "chosen": "yes"}, "rejected=None"),
        ({"prompt": [], "chosen": "yes", "rejected": "no"}, "prompt="),
        ({"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"},
         "ends with role 'assistant'"),
        ({"prompt": "hi", "response": "yes"}, "label=None"),
        ({"prompt": "hi", "response": "yes", "label": 1}, "label=1"),
        ({"prompt": "hi", "chosen": {"role": "user", "content": "x"}, "rejected": "b"},
         "no whole assistant message"),
        ({"prompt": "hi", "chosen": "\x00", "rejected": "b"}, "null character"),
    ],
)  # fmt: skip
def test_rows_that_compare_nothing_are_dropped_and_said(tmp_path, row, said):
    found, report = read(tmp_path, row)
    assert found == []
    assert said in report.summary()


@pytest.mark.parametrize("layout", ["v3", "r1", "v3.1"])
def test_only_the_answer_is_the_answers(tokenizer, layout):
    prompt = [Message("user", "the sea"), Message("assistant", "dark"), Message("user", "the fish")]
    answer = [Message("assistant", "see the crab", reasoning=None if layout == "v3" else "deep")]
    encoded = encode_answer(prompt, answer, tokenizer, layout)
    pairs = zip(*encoded, strict=True)
    said = tokenizer.decode([token for token, learned in pairs if learned], skip_control=False)
    assert "dark" not in said
    assert said.endswith(
        "see the crab" + tokenizer.decode([tokenizer.eos_token_id], skip_control=False)
    )
    assert ("deep" in said) == (layout != "v3")


def test_calls_are_the_answers_and_their_results_are_not(tokenizer):
    prompt = [Message("user", "the sea")]
    answer = [
        Message("assistant", "", tool_calls=(ToolCall("look", '{"at": "sea"}'),)),
        Message("tool", "dark"),
        Message("assistant", "it is deep"),
    ]
    encoded = encode_answer(prompt, answer, tokenizer)
    said = tokenizer.decode([t for t, learned in zip(*encoded, strict=True) if learned])
    assert "look" in said
    assert "it is deep" in said
    assert "dark" not in said


@pytest.fixture(scope="module")
def shipped():
    stories = corpus.stories("train")[:1500]
    requests = Requests(stories)
    return list(subject_pairs(stories, requests, 1, 60)), requests


def test_the_worse_story_never_mentions_what_was_asked_for_and_is_about_as_long(shipped):
    pairs, requests = shipped
    assert len(pairs) == 60
    for prompt, (chosen, rejected), _ in pairs:
        better, worse = chosen[0].content, rejected[0].content
        assert better != worse
        subject = find_subjects(better, requests.vocabulary)[0]
        asked = {singular(word) for word in f"{subject.noun} {subject.name}".lower().split()} - {
            "and"
        }
        assert not asked & {singular(word.lower()) for word in words_of(worse)}
        assert asked & {singular(word.lower()) for word in words_of(prompt[0].content)}
        assert abs(len(better) - len(worse)) <= LENGTHS * max(len(better), len(worse)) + 4


def test_the_same_seed_makes_the_same_pairs_and_another_one_others(shipped):
    _, requests = shipped
    stories = corpus.stories("valid")
    one, again, other = (list(subject_pairs(stories, requests, s, 10)) for s in (1, 1, 2))
    assert one == again != other


def test_the_worse_answer_is_the_beginning_of_another_story_and_about_as_long():
    stories = corpus.stories("valid")
    whole = {opening_of(story, 1000) for story in stories}
    found = list(ending_pairs(stories, 1, 50))
    assert len(found) == 50
    for _, (chosen, rejected), _ in found:
        better, worse = chosen[0].content, rejected[0].content
        assert better in whole
        assert worse not in whole
        assert any(story.startswith(worse) for story in whole)
        assert abs(len(better) - len(worse)) <= LENGTHS * len(better)
    assert found == list(ending_pairs(stories, 1, 50)) != list(ending_pairs(stories, 2, 50))
