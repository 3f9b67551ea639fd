"""What an evaluation asks of a model, and how it is judged.

    choice    the likeliest of some endings is the answer; one of them is right
    answer    the model writes, and what it wrote is graded in [0, 1]
    text      how many bits a document costs per byte

A task knows its questions and its protocol; who runs it (`run.py`) knows the model. No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from abyssal.tokenizer.message import Message

Template = Literal["text", "chat", "r1-zero"]  # how a question is put to the model
Fits = Callable[[str], bool]  # whether a prompt leaves the model room to answer


class Item(NamedTuple):
    """One question, as its file has it."""

    id: str
    text: str  # what records and reports show
    data: Mapping[str, Any]
    domain: str = ""  # its language, subject or kind: scores are also told by it


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What must be said wherever a score is shown."""

    source: str
    license: str
    protocol: str
    caveat: str = ""  # what is missing, or must not be claimed
    chance: float = 0.0  # the score of a model that knows nothing


class Choice(NamedTuple):
    """Endings of one context, of which one is right."""

    context: str  # empty: the endings are whole sentences
    endings: tuple[str, ...]
    right: int  # its place
    names: tuple[str, ...]  # the endings as published; acc_norm divides by their lengths


class Question(NamedTuple):
    """What a model is to continue, or to answer."""

    prompt: str | tuple[Message, ...]
    stop: tuple[str, ...] = ()  # texts that end an answer
    max_tokens: int = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceTask:
    """Judged by likelihood: acc, and with `normalized` also acc_norm."""

    name: str
    about: About
    items: Callable[[], Sequence[Item]]
    choice: Callable[[Item, Fits], Choice]
    normalized: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerTask:
    """Judged by what the model writes."""

    name: str
    about: About
    items: Callable[[], Sequence[Item]]
    question: Callable[[Item, Template, Fits], Question]
    grade: Callable[[Item, str], float]  # of an answer's text, in [0, 1]
    # What an answer says: equal votes are one answer, None is no vote. Without it, no cons@k.
    vote: Callable[[Item, str], str | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTask:
    """Judged by the bits per byte of `Item.text`."""

    name: str
    about: About
    items: Callable[[], Sequence[Item]]


Task = ChoiceTask | AnswerTask | TextTask
KIND = {ChoiceTask: "choice", AnswerTask: "answer", TextTask: "text"}


def most_examples(examples: Sequence[str], question: str, fits: Fits, opening: str = "") -> str:
    """A prompt of as many examples as fit before the question, the last ones dropped first."""
    for count in range(len(examples), 0, -1):
        prompt = opening + "".join(examples[:count]) + question
        if fits(prompt):
            return prompt
    return opening + question
