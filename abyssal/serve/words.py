"""Text as the words it is searched by: the same for what is written down and for what is asked.

Case, accents, vowel points, tatweel and width do not count, and neither do the ways to write one
Arabic letter or the article before a word. Scripts that put no spaces between words (Chinese,
Japanese, Thai and their neighbors) are searched character by character, next to each other, so that
any part of a sentence is found.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

MAX_TERMS = 16  # of one query
MAX_INDEXED = 2**18  # characters of one text that can be found

_SNIPPET = 120  # characters
_LEAD = 30  # of them before what was found


def words(text: str) -> list[str]:
    """The words of a text, folded, in order; of a very long text those of its beginning."""
    return _split(_fold(text[:MAX_INDEXED])[: 2 * MAX_INDEXED])


def terms(query: str) -> list[str]:
    """What a query asks for: an FTS5 phrase for each of its words, whose end may be missing.

    Whatever stands in the query, a phrase has nothing but letters and digits in it.
    """
    parts = dict.fromkeys(" ".join(words(part)) for part in query.split())
    return [f'"{part}"*' for part in parts if part]


def snippet(text: str, asked: Sequence[str]) -> str:
    """The part of a text, on one line, where the first of some terms is."""
    phrases = [term.strip('"*').split() for term in asked]
    longest = max(map(len, phrases), default=1)
    seen: list[tuple[str, int]] = []  # the last few words and where each begins
    place = 0
    for word, begin in _placed(text[:MAX_INDEXED]):
        seen = [*seen, (word, begin)][-longest:]
        found = next((p for p in phrases if _ends([one for one, _ in seen], p)), None)
        if found is not None:
            place = seen[-len(found)][1]
            break
    begin = max(0, place - _LEAD)
    cut = " ".join(text[begin : begin + _SNIPPET].split())
    return ("…" if begin else "") + cut + ("…" if begin + _SNIPPET < len(text) else "")


def _ends(seen: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether the words seen end in a phrase, whose last word may be begun only."""
    *whole, begun = phrase
    tail = seen[-len(phrase) :]
    return len(tail) == len(phrase) and tail[:-1] == whole and tail[-1].startswith(begun)


def _placed(text: str) -> Iterator[tuple[str, int]]:
    """Every word with the place of its first character in the text as it was written."""
    for found in _RUN.finditer(text):
        for word in _split(_fold(found[0])):
            yield word, found.start()


def _fold(text: str) -> str:
    parts = unicodedata.normalize("NFKD", text).casefold().translate(_TABLE)
    return unicodedata.normalize("NFKC", parts)


def _split(folded: str) -> list[str]:
    return [_ARTICLE.sub("", word) for word in _WORD.findall(folded)]


# Marks that may be left out in writing: accents (Latin, Greek, Cyrillic), vowel points (Hebrew,
# Arabic), tatweel; and letters that one writes for another.
_POINTS = "\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f"
_MORE_POINTS = "\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0640"
_MARKS = re.compile(f"[{_POINTS}{_MORE_POINTS}]")
_SAME = {
    **{chr(code): "" for code in range(0x300, 0x6EE) if _MARKS.match(chr(code))},
    **dict(zip("ىةیکٱ", "يهيكا", strict=True)),
}
_TABLE = str.maketrans(_SAME)

# Thai, Lao, Tibetan, Myanmar, Khmer; kana, Chinese characters.
_NO_SPACES = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_RARE = "\uf900-\ufaff\U00020000-\U0003ffff"
# Scripts of India write vowels as marks that are no letters to Unicode.
_WORD = re.compile(f"[{_NO_SPACES}{_RARE}]|(?:[^\\W_{_NO_SPACES}{_RARE}]|[\u0900-\u0dff])+")
_RUN = re.compile(
    f"[{_NO_SPACES}{_RARE}]|(?:[^\\W_{_NO_SPACES}{_RARE}]|[\u0900-\u0dff{_POINTS}{_MORE_POINTS}])+"
)
# The Arabic article, with the words that are written onto it: and, then, with, like.
_ARTICLE = re.compile(r"^[وفبك]?ال(?=\w{2})")
