"""Which answers of a teacher are worth learning: rejection sampling.

DeepSeek-R1 (arXiv 2501.12948) samples several answers to a question, keeps the correct ones, and
drops thoughts of mixed language, long paragraphs and code blocks. Each answer that falls is counted
under the first reason it falls for, in this order:

    cut off    form    wrong    language    code block    long paragraph    duplicate    enough
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from abyssal.data.documents import DropReport
from abyssal.errors import ConfigError
from abyssal.evals.puzzles import Puzzle
from abyssal.train.forms import Form, Reply, chat_reply, zero_reply
from abyssal.train.rewards import Language, Parts, Rewards, judge
from abyssal.train.teachers import Written

_CODE = re.compile(r"```|~~~")
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sieve:
    """What an answer must be; the paper gives no numbers."""

    keep: int = 1  # answers to a question at most
    target: Language = "en"
    language: float = 0.9  # share of the thought's words that are of the target language
    paragraph: int = 2000  # characters of the longest

    def __post_init__(self) -> None:
        if self.keep < 1 or self.paragraph < 1:
            raise ConfigError(
                f"keep={self.keep} and paragraph={self.paragraph}, expected at least 1"
            )
        if not 0 <= self.language <= 1:
            raise ConfigError(f"language={self.language}, expected a share from 0 to 1")


class Kept(NamedTuple):
    """An answer that went through."""

    written: Written
    reply: Reply
    parts: Parts


def sift(
    puzzle: Puzzle, answers: Iterable[Written], form: Form, sieve: Sieve, report: DropReport
) -> list[Kept]:
    """The answers to one question that are worth learning; the others go into the report."""
    kept: list[Kept] = []
    for written in answers:
        report.total += 1
        reply = read(written, form)
        parts = marks(puzzle, reply, sieve)
        fault = _fault(written, reply, parts, sieve) or _surplus(reply, kept, sieve)
        if fault:
            report.drop(fault, puzzle.question)
        else:
            kept.append(Kept(written, reply, parts))
    return kept


def read(written: Written, form: Form) -> Reply:
    """An answer taken apart."""
    return zero_reply(written.text) if form == "zero" else chat_reply(*written[:2])


def marks(puzzle: Puzzle, reply: Reply, sieve: Sieve) -> Parts:
    """What an answer would earn by rules."""
    return judge(puzzle, reply, 0.0, Rewards(language=1.0, target=sieve.target))


def _fault(written: Written, reply: Reply, parts: Parts, sieve: Sieve) -> str:
    """Why an answer is not worth learning by itself; nothing if it is."""
    said = f"{reply.thought}\n\n{reply.answer}"
    if written.end != "stop":
        return "cut off"
    if not reply.is_well_formed or not reply.answer:
        return "form"
    if not parts.accuracy:
        return "wrong"
    if parts.language < sieve.language:
        return "language"
    if _CODE.search(said):
        return "code block"
    if max(map(len, _PARAGRAPHS.split(said))) > sieve.paragraph:
        return "long paragraph"
    return ""


def _surplus(reply: Reply, kept: list[Kept], sieve: Sieve) -> str:
    """Why a good answer is not needed any more."""
    same = (reply.thought.split(), (reply.answer or "").split())
    if any((one.reply.thought.split(), (one.reply.answer or "").split()) == same for one in kept):
        return "duplicate"
    return "enough" if len(kept) == sieve.keep else ""
