"""The same story about something else: every dog becomes a dragon, every ball a kite.

A model of a few million parameters learns that stories are about Lily and a ball, whatever was
asked. Where the subject is drawn at random from its kind, only the request tells what the story is
about, and the model has to look there. The kinds are lists in ``corpus/words.toml``.
"""

import re

import numpy as np

from abyssal.data.subjects import WORDS, Subject

_KINDS = tuple(tuple(sorted(WORDS[kind])) for kind in ("creatures", "toys", "foods", "folk"))
_ARTICLE = re.compile(r"\b([Aa])n? (?=([a-z]+))")
_VOWELS = ("a", "e", "i", "o", "u")
_NOT_VOWELS = ("uni", "use", "one", "eu")


def recast(
    story: str, subjects: list[Subject], rng: np.random.Generator
) -> tuple[str, Subject | None]:
    """The story with its first subject of a known kind replaced by another, and that subject.

    Unchanged where no subject is of a known kind, or where the new word is in the story already.
    """
    for subject in subjects:
        kind = next((kind for kind in _KINDS if subject.noun in kind), None)
        if kind is None:
            continue
        new = kind[int(rng.integers(len(kind)))]
        if re.search(rf"\b{new}s?\b", story, re.IGNORECASE):
            return story, None
        told = _with_articles(_replaced(story, subject.noun, new))
        return told, subject._replace(noun=new)
    return story, None


def _replaced(story: str, old: str, new: str) -> str:
    """Every `old` and its plural, whatever its first letter's case, as `new`."""

    def swap(found: re.Match[str]) -> str:
        word = new + found[2]
        return word.capitalize() if found[1][0].isupper() else word

    return re.sub(rf"\b({old})(s?)\b", swap, story, flags=re.IGNORECASE)


def _with_articles(story: str) -> str:
    """Every a and an as the word behind it wants."""

    def article(found: re.Match[str]) -> str:
        word = found[2]
        has_vowel = word.startswith(_VOWELS) and not word.startswith(_NOT_VOWELS)
        return f"{found[1]}{'n' if has_vowel else ''} "

    return _ARTICLE.sub(article, story)
