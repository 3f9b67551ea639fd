"""What a story is about: the things its opening names and the rest keeps talking about.

No tagger, and no lexicon but a few closed lists (``corpus/words.toml``). In English a noun shows
itself by its company: it ends a phrase that began with a determiner ("a big red *ball* and", "the
*park*."), while an adjective is followed by another word. Counted over a few thousand stories this
separates the two well,

    nounness(w) = times w ended such a phrase / times w occurred,

and document frequency tells a hat, which a story may be about, from a day, which is in them all.
"""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from abyssal.data.corpus import FOLDER

_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|[.,!?;:\"“”]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”']?\s+")
WORDS = {
    name: frozenset(words.split())
    for name, words in tomllib.loads((FOLDER / "words.toml").read_text(encoding="utf-8")).items()
}

_VOWELS = ("a", "e", "i", "o", "u")
_NOT_VOWELS = ("uni", "use", "one", "eu")


class Subject(NamedTuple):
    """One thing a story is about; ``phrase()`` is how a person would ask for it."""

    determiner: str  # "a", "the", "two", or "" for plurals, names and masses
    adjectives: tuple[str, ...]
    noun: str  # "dog", "toy car", "ducks", "Tom and Lily"
    name: str  # "Spot", or ""
    verb: str  # the word before the phrase: "found", "was"
    score: float

    def phrase(self, *, adjectives: bool = True, name: bool = True) -> str:
        """The words of a request, such as "a little dog named Spot", or fewer."""
        kept = self.adjectives if adjectives else ()
        words = " ".join((*kept, self.noun))
        determiner = self.determiner
        if determiner == "a" and words.startswith(_VOWELS) and not words.startswith(_NOT_VOWELS):
            determiner = "an"
        tail = f" named {self.name}" if name and self.name else ""
        return f"{determiner} {words}{tail}".strip()


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order."""
    return _WORD.findall(text)


def opening_of(story: str, sentences: int = 2) -> str:
    """The first sentences of a story."""
    return " ".join(_SENTENCE_END.split(story.strip(), maxsplit=sentences)[:sentences])


def singular(noun: str) -> str:
    """The singular: "ducks" -> "duck", "berries" -> "berry"; other words as they are."""
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("xes", "shes", "ches", "sses")):
        return noun[:-2]
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and len(noun) > 3:
        return noun[:-1]
    return {"mice": "mouse", "children": "child", "men": "man", "leaves": "leaf"}.get(noun, noun)


class Vocabulary:
    """Which words of a collection of stories are nouns, and in how many stories each occurs."""

    def __init__(self, stories: Iterable[str]):
        self.num_stories = 0
        self.stories_with: Counter[str] = Counter()
        self._total: Counter[str] = Counter()
        self._as_noun: Counter[str] = Counter()
        for story in stories:
            self._count(words_of(story))

    def _count(self, words: Sequence[str]) -> None:
        lower = [word.lower() for word in words]
        self.num_stories += 1
        self.stories_with.update({singular(word) for word in lower})
        for i in range(2, len(words) - 1):
            if not words[i][0].islower():
                continue
            self._total[lower[i]] += 1
            after_determiner = (
                lower[i - 1] in WORDS["determiners"] or lower[i - 2] in WORDS["determiners"]
            )
            if after_determiner and lower[i + 1] in WORDS["closers"]:
                self._as_noun[lower[i]] += 1

    def nounness(self, word: str) -> float:
        """How often this word ends a noun phrase, from 0 to 1; singular and plural share."""
        forms = {word, singular(word)}
        return max(self._as_noun[form] / max(self._total[form], 1) for form in forms)

    def rarity(self, word: str) -> float:
        """Logarithm of how few stories have this word, at least 0; one story in ten gives 2.3."""
        return math.log((self.num_stories + 1) / (self.stories_with[singular(word)] + 1))

    def is_proper(self, word: str) -> bool:
        """Whether the word is hardly ever written small."""
        return self._total[word] <= 0.1 * self.stories_with[singular(word)]

    def is_plural(self, word: str) -> bool:
        """Whether the word is the plural of another word of these stories."""
        return singular(word) != word and self._total[singular(word)] > 0

    def is_noun(self, word: str) -> bool:
        """Whether the word is rather a noun than anything else."""
        return (
            word not in WORDS["never"]
            and word not in WORDS["determiners"]
            and self.nounness(word) >= 0.25
        )


def find_subjects(story: str, vocabulary: Vocabulary, sentences: int = 2) -> list[Subject]:
    """The subjects in a story's first sentences that it mentions more than once, best first."""
    words = words_of(opening_of(story, sentences))
    counts = Counter(singular(word.lower()) for word in words_of(story))
    found: dict[str, Subject] = {}
    for end in range(len(words)):
        subject = _phrase_ending_at(words, end, counts, vocabulary)
        if subject and (subject.noun not in found or subject.score > found[subject.noun].score):
            found[subject.noun] = subject
    introduced = {subject.name for subject in found.values()}  # "a dog named Spot" covers "Spot"
    for subject in _people(words, counts, vocabulary):
        if subject.noun not in introduced:
            found.setdefault(subject.noun, subject)
    return sorted(found.values(), key=lambda subject: -subject.score)


def _phrase_ending_at(
    words: Sequence[str], end: int, counts: Counter[str], vocabulary: Vocabulary
) -> Subject | None:
    """The noun phrase whose last word is words[end], if there is one and the story keeps to it."""
    head = words[end]
    if not head.islower() or not vocabulary.is_noun(head):
        return None
    name = _name_after(words, end)
    if counts[singular(head)] < 2 and counts[name.lower()] < 2:
        return None
    start = _determiner_before(words, end)
    if start is None and not vocabulary.is_plural(head) and head not in WORDS["mass"]:
        return None
    if start is not None and not _closes(words[end + 1].lower() if end + 1 < len(words) else "."):
        return None
    determiner = "" if start is None else words[start].lower()
    if head in WORDS["relatives"] and determiner not in ("a", "two", "the"):
        return None
    modifiers, noun = _split_modifiers(words, start, end, vocabulary)
    return Subject(
        determiner=_request_determiner(determiner, head, vocabulary),
        adjectives=modifiers,
        noun=noun,
        name=name,
        verb=words[start - 1].lower() if start else "",
        score=_score(words, start, end, counts, vocabulary),
    )


def _closes(follower: str) -> bool:
    """Whether the word after a noun says that the noun was the last of its phrase."""
    return follower in WORDS["closers"] or follower.endswith(("ed", "ly"))


def _split_modifiers(
    words: Sequence[str], start: int | None, end: int, vocabulary: Vocabulary
) -> tuple[tuple[str, ...], str]:
    """The last adjective before the head and the noun it belongs to: ("red",), "toy car"."""
    inner = [] if start is None else [word for word in words[start + 1 : end] if word != ","]
    if any(
        not word.islower() or word in WORDS["closers"] or word in WORDS["empty"] for word in inner
    ):
        inner = []
    noun = words[end]
    if inner and vocabulary.is_noun(inner[-1]) and inner[-1] not in WORDS["plain_adjectives"]:
        noun = f"{inner.pop()} {noun}"
    return tuple(inner[-1:]), noun


def _determiner_before(words: Sequence[str], end: int) -> int | None:
    """Where the phrase that ends here began: at most two adjectives, commas aside, back."""
    budget = 2
    for i in range(end - 1, -1, -1):
        word = words[i].lower()
        if word in WORDS["determiners"]:
            return i
        if word == ",":
            continue
        budget -= 1
        if budget < 0 or word in WORDS["closers"] or not word[0].isalpha():
            return None
    return None


def _request_determiner(determiner: str, head: str, vocabulary: Vocabulary) -> str:
    """The determiner a request uses for what the story says with this one."""
    if head in WORDS["unique"]:
        return "the"
    if determiner in ("two", "three"):
        return determiner
    if determiner in ("a", "an"):
        return "a"
    return "" if head in WORDS["mass"] or vocabulary.is_plural(head) else "a"


def _name_after(words: Sequence[str], end: int) -> str:
    """The name in "dog named Spot" or "dog. Its name was Spot", or nothing."""
    for i in range(end + 1, min(end + 6, len(words) - 1)):
        if words[i] in ("named", "called") and i == end + 1:
            return words[i + 1] if words[i + 1][0].isupper() else ""
        if words[i] == "name" and words[i + 1] == "was" and i + 2 < len(words):
            return words[i + 2] if words[i + 2][0].isupper() else ""
    return ""


def _score(
    words: Sequence[str],
    start: int | None,
    end: int,
    counts: Counter[str],
    vocabulary: Vocabulary,
) -> float:
    """How much a story is about the phrase: often named, rare elsewhere, named early, a hero."""
    head, name = words[end], _name_after(words, end)
    mentions = counts[singular(head)] + counts[name.lower()] // 2
    score = math.log(1 + mentions) * (1 + vocabulary.rarity(head))
    before = words[(start if start is not None else end) - 1].lower() if end else ""
    if before in WORDS["places"]:
        score *= 0.5  # where it happens, not what it is about
    if before == "was" or name:
        score *= 1.5
    if head in WORDS["generic"]:
        score *= 0.5
    return score / (1 + 0.02 * end)


def _people(
    words: Sequence[str], counts: Counter[str], vocabulary: Vocabulary
) -> Iterator[Subject]:
    """Heroes the opening only names: "Tom and Lily", "two friends", "Molly"."""
    names = [word for word in dict.fromkeys(words) if _is_name(word, counts, vocabulary)]
    if len(names) >= 2:
        text = " ".join(words)
        if f"{names[0]} and {names[1]}" in text:
            yield Subject("", (), f"{names[0]} and {names[1]}", "", "", 3.0)
        if "friends" in words:
            yield Subject("two", (), "friends", "", "", 2.0)
    elif names and counts[names[0].lower()] > 2:
        yield Subject("", (), names[0], "", "", 1.0)


def _is_name(word: str, counts: Counter[str], vocabulary: Vocabulary) -> bool:
    """Whether a word is a person's name: capitalized, repeated, and no word otherwise."""
    if not (word.istitle() and word.isalpha() and counts[singular(word.lower())] > 1):
        return False
    return word.lower() not in WORDS["not_names"] and vocabulary.is_proper(word.lower())
