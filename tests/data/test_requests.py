"""Requests are made from what a story says, and small talk from what we wrote."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.data import corpus
from abyssal.data.chat_mixture import finetuning_chats, pretraining_texts
from abyssal.data.requests import Requests, story_chats, vary
from abyssal.data.small_talk import read_small_talk, small_talk
from abyssal.data.subjects import opening_of, singular, words_of
from abyssal.errors import ConfigError

STORIES = corpus.stories("train")[:1500]
REQUESTS = Requests(STORIES)
TALK = read_small_talk()
SEEDS = st.integers(0, 2**31)


def lowered(text: str) -> list[str]:
    return [singular(word.lower()) for word in words_of(text)]


def test_a_subject_stands_in_the_opening_and_comes_back():
    for story in STORIES:
        opening, whole = set(lowered(opening_of(story))), lowered(story)
        for phrase in REQUESTS.about(story):
            said = [word for word in lowered(phrase) if word not in ("a", "an", "two", "named")]
            assert set(said) <= opening | {"the"}, (phrase, story[:200])
            if phrase != "two friends":  # those come back by their names
                assert any(whole.count(word) > 1 for word in said), (phrase, story[:200])


def test_nearly_every_story_has_a_subject():
    without = sum(not REQUESTS.about(story) for story in STORIES)
    assert without < 0.03 * len(STORIES)


@pytest.mark.parametrize(
    ("story", "subject"),
    [
        ("One day, a rabbit found a hat. The hat was magic. The rabbit put on the hat.", "a hat"),
        (
            "Once upon a time, there was a little dog named Spot. Spot ran.",
            "a little dog named Spot",
        ),
        ("Tom and Lily were friends. They had a cake. Tom ate it. Lily cried.", "Tom and Lily"),
        ("Tom and Lily were friends. They had a cake. Tom ate it. Lily cried.", "two friends"),
        ("There was an old owl. The owl was wise.", "an old owl"),
        ("Sara likes her dolls. The dolls are new.", "dolls"),
        ("Tim had a toy car. He loved the car.", "a toy car"),
    ],
)
def test_a_story_is_about_what_a_reader_would_say(story, subject):
    assert subject in REQUESTS.about(story)


def test_a_mother_or_a_moment_is_not_what_a_story_is_about():
    story = "One day, Tim saw his mom. It was a good time. His mom had a good time with Tim."
    assert not {"a mom", "a good time", "a time", "a day"} & set(REQUESTS.about(story))


@given(SEEDS)
def test_the_same_generator_makes_the_same_request(seed):
    story = STORIES[seed % len(STORIES)]
    first, again = (REQUESTS.request(story, np.random.default_rng(seed)) for _ in range(2))
    assert first == again
    assert first.strip()
    assert "{" not in first


def test_most_requests_name_something_of_the_opening():
    dull = set(lowered("a an the tell me story about write short please would like hear and who"))
    named = 0
    for story, (user, _) in zip(STORIES, story_chats(STORIES, 0, REQUESTS), strict=True):
        assert user.content
        named += bool((set(lowered(user.content)) - dull) & set(lowered(opening_of(story))))
    assert named > 0.9 * len(STORIES)


def test_another_seed_asks_in_other_words_for_the_same_stories():
    first, second = list(story_chats(STORIES, 1, REQUESTS)), list(story_chats(STORIES, 2, REQUESTS))
    assert [chat[1] for chat in first] == [chat[1] for chat in second]
    same = sum(one[0] == other[0] for one, other in zip(first, second, strict=True))
    assert same < 0.1 * len(STORIES)


def test_requests_come_in_many_forms():
    forms = {REQUESTS.request(STORIES[0], np.random.default_rng(seed)) for seed in range(200)}
    assert len(forms) > 80


@given(st.text(min_size=1), SEEDS)
def test_typing_changes_no_more_than_case_and_the_last_marks(text, seed):
    typed = vary(text, np.random.default_rng(seed))
    assert re.sub(r"[.!]+$", "", typed) in {
        re.sub(r"[.!]+$", "", form) for form in (text, text.lower(), text.upper())
    }


def test_every_intent_has_something_to_say_and_an_answer():
    assert len(TALK.intents) >= 35
    for intent in TALK.intents:
        assert 10 <= len(intent.users) <= 25, intent.name
        assert 1 <= len(intent.answers) <= 3, intent.name
    for intent in (*TALK.intents, *TALK.unknown):
        assert intent.weight > 0
        assert all(line.strip() for line in (*intent.users, *intent.answers)), intent.name


def test_no_two_intents_are_asked_in_the_same_words():
    seen: dict[str, str] = {}
    for intent in (*TALK.intents, *TALK.unknown):
        for line in intent.users:
            key = re.sub(r"\W+$", "", line.lower())
            assert seen.setdefault(key, intent.name) == intent.name, line


def test_names_in_braces_have_a_list_and_answers_use_only_those_of_the_question():
    for intent in (*TALK.intents, *TALK.unknown):
        slots = [set(re.findall(r"\{(\w+)\}", line)) for line in intent.users]
        assert set().union(*slots) <= set(TALK.lists), intent.name
        for answer in intent.answers:
            assert all(set(re.findall(r"\{(\w+)\}", answer)) <= found for found in slots)


@given(SEEDS)
def test_small_talk_alternates_and_always_answers(seed):
    turns = list(story_chats(STORIES[:3], seed, REQUESTS))
    for chat in small_talk(seed, 5, turns):
        assert [message.role for message in chat] == ["user", "assistant"] * (len(chat) // 2)
        assert all(message.content and "{" not in message.content for message in chat)


def test_small_talk_depends_on_nothing_but_the_seed():
    assert list(small_talk(7, 50)) == list(small_talk(7, 50))
    assert list(small_talk(7, 50)) != list(small_talk(8, 50))


def test_what_it_cannot_know_is_declined():
    declines = set(TALK.unknown[0].answers)
    assert len(declines) <= 3
    for chat in small_talk(0, 200, decline_share=1.0):
        assert {message.content for message in chat[1::2]} <= declines
    assert not any(
        m.content in declines for chat in small_talk(0, 200, decline_share=0.0) for m in chat
    )


def test_pretraining_tells_every_story_once():
    told = list(pretraining_texts(3, stories=STORIES, requests=REQUESTS, chat_share=0.4))
    chats = [item for item in told if isinstance(item, list)]
    texts = [item if isinstance(item, str) else item[-1].content for item in told]
    assert sorted(text.strip() for text in texts) == sorted(story.strip() for story in STORIES)
    assert 0.3 < len(chats) / len(told) < 0.5


def test_pretraining_mixes_in_the_small_talk_it_was_asked_for():
    told = list(pretraining_texts(3, stories=STORIES, requests=REQUESTS, talk_share=0.25))
    assert len(told) - len(STORIES) == pytest.approx(0.25 * len(told), abs=1)


@pytest.mark.parametrize("story_share", [0.0, 0.5, 1.0])
def test_finetuning_gives_the_number_and_the_share_it_was_asked_for(story_share):
    chats = list(
        finetuning_chats(5, 600, stories=STORIES, requests=REQUESTS, story_share=story_share)
    )
    told = {story.strip() for story in STORIES}
    single = sum(len(chat) == 2 and chat[1].content in told for chat in chats)
    assert len(chats) == 600
    assert single / 600 == pytest.approx(story_share, abs=0.06)


def test_finetuning_tells_no_story_too_long_to_end_and_none_that_is_held_out():
    held_out = {story.strip() for story in corpus.stories("valid")}
    for chat in finetuning_chats(5, 400, requests=REQUESTS, longest_story=800):
        for message in chat:
            assert message.content not in held_out
            assert len(message.content or "") <= 800


def test_finetuning_repeats_stories_with_other_requests():
    chats = list(finetuning_chats(5, 40, stories=STORIES[:4], requests=REQUESTS, story_share=1.0))
    assert len(chats) == 40
    assert len({chat[0].content for chat in chats}) > 20


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"story_share is 1\.5"):
        next(finetuning_chats(0, 1, stories=STORIES, story_share=1.5))
    with pytest.raises(ConfigError, match="longest_story=3"):
        next(finetuning_chats(0, 1, stories=STORIES, longest_story=3))
