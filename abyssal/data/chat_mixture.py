"""What the small chat model reads: stories, the same stories as answers, and small talk.

A model this small forgets stories while it learns to chat, so the chat layout is already there in
pre-training: part of the stories come as the answer to a request. Fine-tuning then only shifts the
proportions. Both functions yield plain values; others turn them into tokens and shards.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from abyssal.data import corpus
from abyssal.data.requests import Requests, story_chats
from abyssal.data.small_talk import small_talk
from abyssal.errors import ConfigError
from abyssal.tokenizer.chat import Message

_SHORT_STORY = 600  # characters of a story inside a longer conversation, about 150 tokens


def pretraining_texts(
    seed: int,
    *,
    stories: Sequence[str] | None = None,
    requests: Requests | None = None,
    chat_share: float = 0.5,
    talk_share: float = 0.0,
    recast_share: float = 0.0,
) -> Iterator[str | list[Message]]:
    """Every story once, in random order: plain text, or (``chat_share`` of them) as a conversation.

    ``talk_share`` is the part of all documents that is small talk; ``recast_share`` of the
    requested stories are about something else than they were (recast.py). ``stories`` are the
    training stories unless given; use another seed for every pass, and the requests differ each
    time. Give ``requests`` when calling often: to learn its nouns takes seconds.
    """
    _check_share("chat_share", chat_share, 1.0)
    _check_share("talk_share", talk_share, 0.9)
    stories = corpus.stories("train") if stories is None else stories
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(stories))
    talk = small_talk(seed, round(len(stories) * talk_share / (1 - talk_share)))
    slots = len(stories) * talk_share / (1 - talk_share)
    chats = story_chats(
        [stories[i] for i in order], seed, requests or Requests(stories), recast_share=recast_share
    )
    owed = 0.0
    for index, chat in zip(order, chats, strict=True):
        yield chat if rng.random() < chat_share else stories[index]
        owed += slots / len(stories)
        yield from islice(talk, int(owed))
        owed -= int(owed)


def finetuning_chats(
    seed: int,
    count: int,
    *,
    stories: Sequence[str] | None = None,
    requests: Requests | None = None,
    story_share: float = 0.5,
    decline_share: float = 0.35,
    longest_story: int = 900,
    recast_share: float = 0.0,
) -> Iterator[list[Message]]:
    """``count`` conversations: ``story_share`` ask for a story, the others are small talk.

    Only stories of at most ``longest_story`` characters (about 230 tokens) are told, so that one
    fits a row of 256 tokens with its end. ``decline_share`` is the part of the small talk that asks
    what the model cannot know. ``recast_share`` of the stories are about something else than they
    were (recast.py). Stories repeat, each time for another request, when there are fewer
    than asked for.
    """
    _check_share("story_share", story_share, 1.0)
    _check_share("decline_share", decline_share, 1.0)
    stories = corpus.stories("train") if stories is None else stories
    told = [story for story in stories if len(story) <= longest_story]
    if not told:
        raise ConfigError(
            f"no story has at most longest_story={longest_story} characters; raise longest_story"
        )
    requests = requests or Requests(stories)
    rng = np.random.default_rng([seed, 2])
    from_stories = rng.random(count) < story_share
    tellings = _tellings(told, int(from_stories.sum()), seed, requests, recast_share)
    short = [story for story in told if len(story) <= _SHORT_STORY][:1000]
    turns = list(story_chats(short, seed + 1, requests))
    talk = small_talk(seed, count, turns, decline_share=decline_share)
    for is_story in from_stories:
        yield next(tellings if is_story else talk)


def _tellings(
    stories: Sequence[str], count: int, seed: int, requests: Requests, recast_share: float
) -> Iterator[list[Message]]:
    """``count`` stories in random order, each with a request; again and again if need be."""
    rng = np.random.default_rng([seed, 3])
    passes = -(-count // len(stories))
    order = [index for _ in range(passes) for index in rng.permutation(len(stories))]
    chosen = [stories[index] for index in order[:count]]
    yield from story_chats(chosen, seed, requests, recast_share=recast_share)


def _check_share(name: str, share: float, most: float) -> None:
    if not 0.0 <= share <= most:
        raise ConfigError(f"{name} is {share}; expected a number from 0 to {most}")
