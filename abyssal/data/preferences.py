"""Preferences: which of two answers is better, or whether one answer is good.

    {"prompt": [{"role": "user", "content": "..."}], "chosen": "...", "rejected": "..."}
    {"prompt": [...], "response": "...", "label": true}

A prompt is messages, or text for one user message; an answer is text, an assistant message, or a
list of messages that begins and ends with one (tool calls and their results between).

For a model that tells stories there are pairs in the package. Both answers are real text of about
one length, so that only one thing tells them apart:

    subjects    a story about what the request asks for, and one about something else
    endings     a whole story, and the beginning of a longer one, broken off behind a sentence
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from abyssal.data.documents import DropReport, text_fault
from abyssal.data.records import ROW_SUFFIXES, find_files, read_rows
from abyssal.data.requests import Requests
from abyssal.data.subjects import Subject, find_subjects, opening_of, singular, words_of
from abyssal.errors import DataError
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Layout, Message, render

LENGTHS = 0.2  # how far the lengths of two stories may be apart, in parts of the longer
_ALL = 1000  # sentences, more than any story has
TRIES = 200  # stories looked at for one that is about something else


class Comparison(NamedTuple):
    """Answers to one prompt: the better and the worse, or a single one that is good or not."""

    prompt: list[Message]
    answers: tuple[list[Message], ...]  # two, or one
    good: bool = True  # of a single answer


class Encoded(NamedTuple):
    """A prompt with one of its answers."""

    tokens: list[int]
    trained: list[bool]  # of the same length: True where the answer's tokens are the assistant's


def read_comparisons(path: str | Path, report: DropReport) -> Iterator[Comparison]:
    """The rows of .jsonl files, plain or packed, and folders of them.

    Raises:
        DataError: at once, if the path does not exist, cannot be read or is of a type not known.
    """
    found = find_files(path, ROW_SUFFIXES)
    for file in found.unknown:
        report.total += 1
        report.drop("file type not known", str(file))
    return _read(found.files, report)


def _read(paths: Sequence[Path], report: DropReport) -> Iterator[Comparison]:
    for path in paths:
        for where, row, fault in read_rows(path):
            report.total += 1
            try:
                comparison = None if fault else _comparison(row)
            except DataError as error:
                fault, where = "bad row", f"{where} ({error})"
            if fault or comparison is None:
                report.drop(fault, where)
            else:
                yield comparison


def _comparison(row: dict[str, object]) -> Comparison:
    prompt = _messages(row.get("prompt"), "prompt", "user")
    if prompt[-1].role not in ("user", "tool"):
        raise DataError(f"the prompt ends with role {prompt[-1].role!r}; expected user or tool")
    if "response" in row:
        label = row.get("label")
        if not isinstance(label, bool):
            raise DataError(f"label={label!r:.60}; true or false was expected")
        return Comparison(prompt, (_answer(row, "response"),), label)
    return Comparison(prompt, (_answer(row, "chosen"), _answer(row, "rejected")))


def _answer(row: dict[str, object], key: str) -> list[Message]:
    messages = _messages(row.get(key), key, "assistant")
    for message in (messages[0], messages[-1]):
        if message.role != "assistant" or message.prefix:
            raise DataError(f"{key} begins or ends with no whole assistant message")
    return messages


def _messages(value: object, key: str, role: str) -> list[Message]:
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise DataError(f"{key}={value!r:.60}; text or a list of messages was expected")
    messages = [Message.from_dict(message) for message in value]
    for message in messages:
        for text in (message.content or "", message.reasoning or ""):
            if fault := text_fault(text):
                raise DataError(f"{key}: {fault}")
    return messages


def encode_answer(
    prompt: Sequence[Message],
    answer: Sequence[Message],
    tokenizer: Tokenizer,
    layout: Layout = "v3",
) -> Encoded:
    """The tokens of a prompt and its answer; of earlier turns nothing is the answer's."""
    thinking = layout == "v3.1" and any(message.reasoning is not None for message in answer)
    before = render(prompt, tokenizer, layout, thinking, add_generation_prompt=False)
    whole = render([*prompt, *answer], tokenizer, layout, thinking, add_generation_prompt=False)
    known = len(before.tokens)
    assert whole.tokens[:known] == before.tokens
    return Encoded(whole.tokens, [False] * known + whole.trained[known:])


# Pairs that ship


def subject_pairs(
    stories: Sequence[str], requests: Requests, seed: int, count: int, longest: int = 900
) -> Iterator[Comparison]:
    """At most `count` requests for a story, with the story and another of about its length.

    The other one never mentions what was asked for. Stories of more than `longest` characters, and
    those whose subject is not clear, are left out.
    """
    told = sorted((story for story in stories if len(story) <= longest), key=len)
    known = [{singular(word.lower()) for word in words_of(story)} for story in told]
    rng = np.random.default_rng([seed, 4])
    made = 0
    for index in rng.permutation(len(told)):
        if made == count:
            return
        subjects = find_subjects(told[index], requests.vocabulary)
        other = _other(int(index), subjects[0], told, known, rng) if subjects else None
        if other is None:
            continue
        request = requests.request(told[index], rng, subjects[0])
        if not _words(subjects[0]) & {singular(word.lower()) for word in words_of(request)}:
            continue  # a request for just any story
        answers = [[Message("assistant", told[i].strip())] for i in (int(index), other)]
        yield Comparison([Message("user", request)], tuple(answers))
        made += 1


def ending_pairs(
    stories: Sequence[str], seed: int, count: int, longest: int = 900
) -> Iterator[Comparison]:
    """At most `count` whole stories, each with the beginning of a longer one of about its length.

    Lines are joined in both, since a beginning is cut between sentences.
    """
    told = [story for story in stories if len(story) <= longest]
    rng = np.random.default_rng([seed, 5])
    made = 0
    for index in rng.permutation(len(told)):
        if made == count:
            return
        whole = opening_of(told[index], _ALL)
        begun = _beginning(stories[int(rng.integers(len(stories)))], len(whole))
        if begun:
            answers = ([Message("assistant", whole)], [Message("assistant", begun)])
            yield Comparison([Message("user", "Tell me a story.")], answers)
            made += 1


def _beginning(story: str, length: int) -> str:
    """The first sentences of a story, about `length` characters; nothing if that is all of it."""
    whole = opening_of(story, _ALL)
    best, sentences = "", 1
    while len(begun := opening_of(story, sentences)) < len(whole):
        if len(begun) > (1 + LENGTHS) * length:
            break
        best, sentences = begun, sentences + 1
    return best if len(best) >= (1 - LENGTHS) * length else ""


def _other(
    index: int,
    subject: Subject,
    told: Sequence[str],
    known: Sequence[set[str]],
    rng: np.random.Generator,
) -> int | None:
    """A story near in length (they are in the order of it) without a word of the subject."""
    asked = _words(subject)
    low, high = max(0, index - TRIES), min(len(told), index + TRIES)
    for other in rng.permutation(np.arange(low, high)):
        longer = max(len(told[index]), len(told[other]))
        near = abs(len(told[index]) - len(told[other])) <= LENGTHS * longer
        if other != index and near and not asked & known[other]:
            return int(other)
    return None


def _words(subject: Subject) -> set[str]:
    """What a story about the subject cannot do without."""
    words = f"{subject.noun} {subject.name}".lower().split()
    return {singular(word) for word in words} - {"and"}
