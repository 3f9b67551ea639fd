"""A story recast is the same story about something else, and the request asks for that."""

import re

import numpy as np

from abyssal.data import corpus
from abyssal.data.recast import recast
from abyssal.data.requests import Requests, story_chats
from abyssal.data.subjects import WORDS, find_subjects

STORIES = corpus.stories("train")[:400]
REQUESTS = Requests(STORIES)


def recast_all() -> list[tuple[str, str, str]]:
    """(story, recast story, new noun) of those that changed."""
    rng = np.random.default_rng(0)
    found = []
    for story in STORIES:
        new, hero = recast(story, find_subjects(story, REQUESTS.vocabulary), rng)
        if hero is not None:
            found.append((story, new, hero.noun))
    return found


def test_a_story_keeps_everything_but_one_noun_and_its_article():
    changed = recast_all()
    assert len(changed) > 40
    for story, new, noun in changed:
        before, after = re.findall(r"\w+", story), re.findall(r"\w+", new)
        assert len(before) == len(after)
        articles = {"a", "an", "A", "An"}
        for old_word, new_word in zip(before, after, strict=True):
            is_noun = new_word.lower() in (noun, noun + "s")
            assert old_word == new_word or is_noun or {old_word, new_word} <= articles


def test_the_old_noun_is_gone_and_the_new_one_is_of_its_kind():
    kinds = [WORDS[kind] for kind in ("creatures", "toys", "foods", "folk")]
    for story, new, noun in recast_all():
        gone = set(re.findall(r"\w+", story.lower())) - set(re.findall(r"\w+", new.lower()))
        assert any(noun in kind and gone & kind for kind in kinds)


def test_articles_agree_with_the_new_noun():
    for _, new, noun in recast_all():
        wrong = "a" if noun[0] in "aeiou" else "an"
        assert not re.search(rf"\b{wrong} {noun}\b", new, re.IGNORECASE)


def test_most_requests_for_recast_stories_name_the_new_noun():
    chats = story_chats(STORIES, 3, REQUESTS, recast_share=1.0)
    changed = named = 0
    for story, (request, answer) in zip(STORIES, chats, strict=True):
        before = set(re.findall(r"\w+", story.lower()))
        new = set(re.findall(r"\w+", str(answer.content).lower())) - before - {"a", "an"}
        if new:
            changed += 1
            named += any(word in str(request.content).lower() for word in new)
    assert changed > 40
    assert named > 0.8 * changed
