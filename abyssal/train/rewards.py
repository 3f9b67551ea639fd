"""What an answer is worth: right, in the form asked for, in the language asked in.

DeepSeek-R1 (arXiv 2501.12948): R1-Zero adds accuracy and format, equally weighted (section 2.2.2);
R1 adds the share of the target language's words among the thoughts (section 2.3.2). No neural model
is asked, unless one is handed in for what no rule can judge.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from abyssal.errors import ConfigError
from abyssal.evals.puzzles import Puzzle
from abyssal.train.forms import Reply

Language = Literal["en", "de", "fr", "ru", "zh"]

_WORD = re.compile(r"[^\W\d_]+")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_CYRILLIC = re.compile("[\u0400-\u04ff]")
# Frequent words that are written differently in the others: these tell Latin languages apart.
_STOP_WORDS: Mapping[str, frozenset[str]] = {
    name: frozenset(re.findall(r"\w+", words))
    for name, words in {
        "en": "the and of to is it that this for with are was be have not you what which so then "
        "we i by from as at has its if there their can will",
        "de": "der die das und ist nicht ein eine zu mit den von sich auf für dem des im wir ich "
        "also dann es wenn auch als aber wird sind hat nach bei",
        "fr": "le la les et est un une des du que qui dans pour pas ce il elle nous donc alors je "
        "sur avec au aux par mais ou sont se ne puis",
    }.items()
}


class Model(Protocol):
    """A reward model: for what no rule can judge."""

    def __call__(self, prompt: str, text: str) -> float:
        """How good an answer is; any scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """How the parts are added up; R1-Zero's are the defaults."""

    accuracy: float = 1.0
    format: float = 1.0
    language: float = 0.0
    target: Language = "en"
    length: float = 0.0  # taken off an answer of max_tokens, and of a shorter one in proportion
    model: float = 0.0  # of the reward model's score

    def __post_init__(self) -> None:
        for name in ("accuracy", "format", "language", "length", "model"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}, expected a number of at least 0")


class Parts(NamedTuple):
    """One answer's marks, each in [0, 1] but the model's, and their weighted sum."""

    accuracy: float
    format: float
    language: float
    length: float  # of max_tokens
    model: float
    total: float


def judge(
    puzzle: Puzzle, reply: Reply, share: float, weights: Rewards, score: float = 0.0
) -> Parts:
    """The marks of a reply that took this share of the tokens it was allowed.

    `score` is the reward model's.
    """
    answer = reply.answer
    accuracy = float(answer is not None and puzzle.grade(answer) >= 1)  # no credit for parts
    form = float(reply.is_well_formed)
    language = consistency(reply.thought, weights.target) if weights.language else 0.0
    total = (
        weights.accuracy * accuracy
        + weights.format * form
        + weights.language * language
        - weights.length * share
        + weights.model * score
    )
    return Parts(accuracy, form, language, share, score, total)


def consistency(text: str, target: Language) -> float:
    """The share of a text's words that are of the target language; 1 of a text without words.

    Russian and Chinese are told by their script, a Chinese character being a word. English, German
    and French are told from them by theirs, and from one another by stop words: of the words in
    Latin script, the share counts that the target has among stop words of the three.
    """
    han = len(_HAN.findall(text))
    words = [word.lower() for word in _WORD.findall(_HAN.sub(" ", text))]
    cyrillic = sum(bool(_CYRILLIC.search(word)) for word in words)
    latin = len(words) - cyrillic
    if not han + len(words):
        return 1.0
    if target in ("zh", "ru"):
        return (han if target == "zh" else cyrillic) / (han + len(words))
    hits = {name: sum(word in some for word in words) for name, some in _STOP_WORDS.items()}
    known = sum(hits.values())
    mine = hits[target] / known if known else 1.0
    return latin * mine / (han + len(words))
