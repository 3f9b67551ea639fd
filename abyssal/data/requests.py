"""Requests that a story answers: "Tell me a story about a little dog named Spot."

A model of a few million parameters follows a request only if following is easy to learn: the
words of the request have to stand in the first sentences of the story and come back later. So a
request is made from the story's own opening (`subjects.py`), and asked in many ways.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from abyssal.data.recast import recast
from abyssal.data.subjects import Subject, Vocabulary, find_subjects, opening_of
from abyssal.tokenizer.chat import Message

# {x} is one subject or a whole scene: "a dog", "a dog and a ball", "a dog who finds a ball".
_TEMPLATES = (
    "Tell me a story about {x}.",
    "Tell me a story about {x}.",
    "Tell me a story about {x}.",
    "Tell me a short story about {x}.",
    "Tell me a little story about {x}, please.",
    "Please tell me a story about {x}.",
    "Can you tell me a story about {x}?",
    "Can you tell me a story about {x}, please?",
    "Could you tell me a story about {x}?",
    "Could you please tell me a short story about {x}?",
    "Would you tell me a story about {x}?",
    "Will you tell me a story about {x}?",
    "Write a story about {x}.",
    "Write a short story about {x}.",
    "Write a short story about {x}.",
    "Write me a story about {x}.",
    "Write me a short story about {x}, please.",
    "Please write a story about {x}.",
    "Please write about {x}.",
    "Can you write a story about {x}?",
    "Could you write a short story about {x}?",
    "I would like a story about {x}, please.",
    "I would like a story about {x}.",
    "I'd like a story about {x}, please.",
    "I would like to hear a story about {x}.",
    "I want a story about {x}.",
    "I want to hear a story about {x}.",
    "I want to read a story about {x}.",
    "Do you know a story about {x}?",
    "Do you have a story about {x}?",
    "Make up a story about {x}.",
    "Can you make up a story about {x}?",
    "Let me hear a story about {x}.",
    "Give me a story about {x}.",
    "Read me a story about {x}.",
    "Tell me about {x}.",
    "How about a story about {x}?",
    "May I have a story about {x}?",
    "My child wants a bedtime story about {x}.",
    "Tell me a bedtime story about {x}.",
    "A story about {x}, please.",
    "A story about {x}.",
    "A short story about {x}",
    "Story about {x}",
    "story about {x}",
    "{x}, please.",
    "{x}",
)
_WITHOUT_SUBJECT = (
    "Tell me a story.",
    "Tell me a story, please.",
    "Please tell me a story.",
    "Can you tell me a story?",
    "Tell me a short story.",
    "Write a story.",
    "Write a short story.",
    "I would like a story, please.",
    "I want to hear a story.",
    "Do you know a story?",
    "Tell me a bedtime story.",
    "A story, please.",
    "Tell me something.",
)
_WORD_LISTS = (
    "Write a story with the words {x}.",
    "Use these words in a story: {x}.",
    "Tell me a story with {x} in it.",
)
_FINDING = {  # the story's verb before an object -> what the hero of the request does with it
    "found": "finds",
    "find": "finds",
    "saw": "sees",
    "see": "sees",
    "had": "has",
    "has": "has",
    "have": "has",
    "wanted": "wants",
    "got": "gets",
    "made": "makes",
    "bought": "buys",
    "lost": "loses",
    "loved": "loves",
    "met": "meets",
}
_LIKING = r"(loved|liked|loves|likes|wanted|wants) to ((?:[a-z]+ ?){1,4})(?=[.,])"
_SHARED = re.compile(r"\bshar(?:e|ed|ing) (?:the|their|a|an|his|her|some) (?:[a-z]+ )?([a-z]+)\b")
_PRONOUN = re.compile(r"\b(?:it|them|her|him|he|she|they|his|their)\b")


class _Scene(NamedTuple):
    """What a request asks for, and the ways to ask for it."""

    text: str
    templates: tuple[str, ...] = _TEMPLATES


class Requests:
    """Makes requests for stories; ``stories`` only teach it which words are nouns and how rare."""

    def __init__(self, stories: Sequence[str]):
        self.vocabulary = Vocabulary(stories)

    def about(self, story: str) -> list[str]:
        """What the story is about, best first: "a little dog named Spot", "a red ball".

        Each stands in the first two sentences and comes back; the list may be empty.
        """
        return [subject.phrase() for subject in find_subjects(story, self.vocabulary)]

    def request(self, story: str, rng: np.random.Generator, hero: Subject | None = None) -> str:
        """What somebody who gets this story may have asked for; about `hero` if one is given."""
        subjects = [hero] if hero else find_subjects(story, self.vocabulary)
        if not subjects or rng.random() < 0.04:
            return vary(choose(_WITHOUT_SUBJECT, rng), rng)
        scene = self._scene(story, subjects, rng)
        text = choose(scene.templates, rng).format(x=scene.text)
        return vary(text[0].upper() + text[1:] if rng.random() < 0.8 else text, rng)

    def _scene(self, story: str, subjects: Sequence[Subject], rng: np.random.Generator) -> _Scene:
        """One subject most of the time; else two together, or a hero and what becomes of it."""
        first = _pick(subjects, rng)
        phrase = _phrase(first, rng)
        company = [
            subject
            for subject in find_subjects(story, self.vocabulary, sentences=4)
            if not _overlap(subject, first)
        ]
        kind = rng.random() * (0.5 if _only_named(first) else 1.0)
        if kind < 0.25:
            scenes = _plots(story, first, phrase, company, rng)
            if scenes:
                return _Scene(choose(scenes, rng))
        if kind < 0.40 and company:
            return _Scene(f"{phrase} and {_phrase(company[0], rng)}")
        if kind < 0.44 and company:
            words = [first.noun, *(subject.noun for subject in company[:2])]
            return _Scene(" and ".join((", ".join(words[:-1]), words[-1])), _WORD_LISTS)
        return _Scene(phrase)


def story_chats(
    stories: Sequence[str],
    seed: int,
    requests: Requests | None = None,
    *,
    recast_share: float = 0.0,
) -> Iterator[list[Message]]:
    """One conversation per story, in order: a request, then the story as the answer.

    Another seed asks for the same stories in other words. ``requests`` knows the nouns; without it
    they are learned from ``stories``, which takes some hundred of them. ``recast_share`` of the
    stories are told about something else of the same kind.
    """
    requests = requests or Requests(stories)
    for index, story in enumerate(stories):
        rng = np.random.default_rng([seed, index])
        hero = None
        if recast_share and rng.random() < recast_share:
            story, hero = recast(story, find_subjects(story, requests.vocabulary), rng)
        request = requests.request(story, rng, hero)
        yield [Message("user", request), Message("assistant", story.strip())]


def vary(text: str, rng: np.random.Generator) -> str:
    """The text as people type it: mostly unchanged, else without capitals or the last mark."""
    draw = rng.random(3)
    if draw[0] < 0.10:
        text = text.lower()
    elif draw[0] < 0.105:
        text = text.upper()
    if draw[1] < 0.15:
        text = text.rstrip(".!")
    elif draw[1] < 0.18 and text.endswith("."):
        text = text[:-1] + "!"
    return text


def choose(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _pick(subjects: Sequence[Subject], rng: np.random.Generator) -> Subject:
    """The best subject two times in three, else one of the next two."""
    weights = np.array([0.66, 0.24, 0.10][: len(subjects)])
    return subjects[int(rng.choice(len(weights), p=weights / weights.sum()))]


def _only_named(subject: Subject) -> bool:
    """Whether the subject is a person of whom the request would say no more than a name."""
    return subject.noun in ("boy", "girl") or not subject.noun.islower()


def _overlap(one: Subject, other: Subject) -> bool:
    """Whether naming both would name the same thing twice, as in "a boy named Tim and Tim"."""
    words = {*one.noun.lower().split(), one.name.lower()} - {"", "and"}
    people = one.noun == "friends" and " and " in other.noun
    return people or not words.isdisjoint({*other.noun.lower().split(), other.name.lower()})


def _phrase(subject: Subject, rng: np.random.Generator) -> str:
    """The subject with or without its adjective and its name, as people would ask for it."""
    keep_name = rng.random() < 0.4 or subject.noun in ("boy", "girl")
    return subject.phrase(adjectives=rng.random() < 0.5, name=keep_name)


def _plots(
    story: str,
    hero: Subject,
    phrase: str,
    others: Sequence[Subject],
    rng: np.random.Generator,
) -> list[str]:
    """What the hero does in the opening: "a bird who likes to sing", "two friends who share..."."""
    scenes = []
    if hero.determiner in ("two", "three") or " and " in hero.noun:
        shared = _SHARED.search(story)
        things = [other for other in others if shared and other.noun.endswith(shared[1])]
        return [f"{phrase} who share {_phrase(other, rng)}" for other in things]
    for other in others[:2]:
        if other.verb in _FINDING and hero.determiner == "a" and _acts(hero):
            scenes.append(f"{phrase} who {_FINDING[other.verb]} {_phrase(other, rng)}")
    wish = _wish(story, hero)
    return [*scenes, f"{phrase} who {wish}"] if wish else scenes


def _acts(hero: Subject) -> bool:
    """Whether the phrase stood where the story introduces who acts, not what is acted on."""
    return bool(hero.name) or hero.verb in ("was", "lived", "once", "day", ",", "")


def _wish(story: str, hero: Subject) -> str:
    """The hero's wish if the opening tells one, such as "likes to sing"; else nothing."""
    if hero.determiner != "a" or hero.noun.split()[-1] not in opening_of(story, 1):
        return ""
    who = [f"[Tt]he {hero.noun}", "who", "that", *([hero.name] if hero.name else [])]
    if hero.verb == "was" or hero.name:
        who += ["He", "She", "It"]
    found = re.search(rf"\b(?:{'|'.join(who)}) {_LIKING}", opening_of(story, 3))
    if not found or _PRONOUN.search(found[2]):
        return ""
    return f"{'wants' if found[1].startswith('want') else 'likes'} to {found[2].strip()}"
