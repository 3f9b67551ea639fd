"""Small talk and honest declines: what a storyteller says when it is not asked for a story.

``corpus/smalltalk.toml`` holds intents (what users say, what Abyssal answers) and questions it
cannot know, with lists of names that fill them. A model of a few million parameters holds few
facts, so it learns to say so, always in one of the same few sentences.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from abyssal.data import corpus
from abyssal.data.requests import choose, vary
from abyssal.tokenizer.chat import Message

_SLOT = re.compile(r"\{(\w+)\}")
_FACT_QUESTIONS = 2.0  # weight of the 1,007 questions of facts_qa among the unknown


class Intent(NamedTuple):
    """Things users say that mean the same, and what to answer."""

    name: str
    weight: float
    users: tuple[str, ...]
    answers: tuple[str, ...]


class SmallTalk(NamedTuple):
    """All that smalltalk.toml says."""

    intents: tuple[Intent, ...]
    unknown: tuple[Intent, ...]  # answered with a decline
    accepts: tuple[str, ...]  # "Yes, please." to the story that a decline offers
    lists: Mapping[str, tuple[str, ...]]


@cache
def read_small_talk() -> SmallTalk:
    """The intents of the packaged smalltalk.toml, and the questions of facts_qa as unknown."""
    table = tomllib.loads((corpus.FOLDER / "smalltalk.toml").read_text(encoding="utf-8"))
    declines = tuple(table["declines"])
    intents = [
        Intent(row["name"], row.get("weight", 1), tuple(row["users"]), tuple(row["answers"]))
        for row in table["intent"]
    ]
    unknown = [
        Intent(row["name"], row.get("weight", 1), tuple(row["questions"]), declines)
        for row in table["unknown"]
    ]
    unknown.append(Intent("facts", _FACT_QUESTIONS, _fact_questions(), declines))
    lists = {name: tuple(words) for name, words in table["lists"].items()}
    return SmallTalk(tuple(intents), tuple(unknown), tuple(table["accepts"]), lists)


def small_talk(
    seed: int,
    count: int,
    story_turns: Sequence[Sequence[Message]] = (),
    *,
    decline_share: float = 0.35,
) -> Iterator[list[Message]]:
    """``count`` conversations: four in five are one question and its answer.

    The others are two exchanges, or have a story in the middle (a greeting, a story, thanks; or a
    decline, "Yes, please.", a story), taken from ``story_turns``, the conversations of
    `story_chats`; without them those are single exchanges. ``decline_share`` of the questions are
    unknown ones. The same seed gives the same conversations.
    """
    talk = read_small_talk()
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        kind = rng.random()
        if kind < 0.10:
            first, second = _exchange(talk, rng, decline_share), _exchange(talk, rng, decline_share)
            yield [*first, *second]
        elif kind < 0.16 and story_turns:
            yield _visit(talk, story_turns[int(rng.integers(len(story_turns)))], rng)
        elif kind < 0.20 and story_turns:
            yield _accepted(talk, story_turns[int(rng.integers(len(story_turns)))], rng)
        else:
            yield [*_exchange(talk, rng, decline_share)]


def _fact_questions() -> tuple[str, ...]:
    """What users ask in facts_qa; the answers stay unused here."""
    questions = []
    for row in corpus.rows("facts_qa"):
        messages = row["messages"]
        assert isinstance(messages, list)
        questions.append(str(messages[0]["content"]))
    return tuple(questions)


def _exchange(
    talk: SmallTalk, rng: np.random.Generator, decline_share: float
) -> tuple[Message, Message]:
    """One question and its answer."""
    intents = talk.unknown if rng.random() < decline_share else talk.intents
    weights = np.array([intent.weight for intent in intents], dtype=np.float64)
    return _say(talk, intents[int(rng.choice(len(intents), p=weights / weights.sum()))], rng)


def _say(talk: SmallTalk, intent: Intent, rng: np.random.Generator) -> tuple[Message, Message]:
    """Something a user says with this intent, and its answer, with the same names in both."""
    template, answer = choose(intent.users, rng), choose(intent.answers, rng)
    names: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        names[match[1]] = choose(talk.lists[match[1]], rng)
        return names[match[1]]

    user = _SLOT.sub(fill, template)
    if template.startswith("{"):
        user = user[0].upper() + user[1:]
    return Message("user", vary(user, rng)), Message("assistant", answer.format(**names))


def _named(talk: SmallTalk, name: str) -> Intent:
    return next(intent for intent in talk.intents if intent.name == name)


def _visit(
    talk: SmallTalk, story_turn: Sequence[Message], rng: np.random.Generator
) -> list[Message]:
    """A greeting, a story and thanks."""
    return [
        *_say(talk, _named(talk, "greeting"), rng),
        *story_turn,
        *_say(talk, _named(talk, "thanks"), rng),
    ]


def _accepted(
    talk: SmallTalk, story_turn: Sequence[Message], rng: np.random.Generator
) -> list[Message]:
    """A question that is declined, and the story that the decline offered."""
    question = _exchange(talk, rng, decline_share=1.0)
    return [*question, Message("user", vary(choose(talk.accepts, rng), rng)), story_turn[-1]]
