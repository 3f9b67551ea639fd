"""Long documents with something to find in them: what a small model of long contexts reads.

    hidden    stories with a pass key between two sentences, asked for at the end, as
              `evals/needle.py` asks
    echo      a few digits or words in no order, again and again: looking back, at its simplest,
              and the easier the shorter what comes back

Only what can be found is learned, marked in the shards as fine-tuning marks answers: a small model
is otherwise busy with the stories for long before it looks back. No key that an examination may ask
for (`needle.is_held_out`) is in any of them.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from abyssal.data import corpus
from abyssal.data.documents import DropReport
from abyssal.data.encoding import Encoded, write_encoded
from abyssal.evals.needle import NEEDLE, OPENING, QUESTION, is_held_out, sentences_of
from abyssal.tokenizer.bpe import Tokenizer

STORIES = 6000  # of the shipped ones, plenty to hide keys in
VOCAB_SIZE = 1024  # a small head, most of what a small model costs
LENGTHS = {"base": 512, "2k": 2048, "8k": 8192}  # tokens of the longest document, by shard folder
PERIODS = (4, 64)  # tokens of what an echo repeats
WORDS = 128  # the most frequent ones, which echoes are made of
SHORT = (80, 128)  # tokens of every other one: little between the key and the question
Part = tuple[list[int], bool]  # tokens, and whether they are learned


class Mixture(NamedTuple):
    """How many documents of each kind a shard folder holds."""

    hidden: int
    echoes: int


MIXTURES = {
    "base": Mixture(hidden=24_000, echoes=24_000),
    "2k": Mixture(hidden=2400, echoes=0),
    "8k": Mixture(hidden=900, echoes=0),
}


def prepare(out: str | Path, seed: int = 1) -> Iterator[str]:
    """Write OUT/tokenizer, OUT/data/base, 2k and 8k; says what it does next."""
    out = Path(out)
    if not (out / "tokenizer" / "tokenizer.json").is_file():
        yield f"training a tokenizer of {VOCAB_SIZE:,} words"
        # Stories without digits: so none are joined, and a number is the digits it is written with.
        texts = [re.sub(r"\d+", "", story) for story in corpus.stories("train")[:STORIES]]
        Tokenizer.train([*texts, *[OPENING + QUESTION] * 100], VOCAB_SIZE).save(out / "tokenizer")
    tokenizer = Tokenizer.load(out / "tokenizer")
    haystack: Haystack | None = None
    for name, mixture in MIXTURES.items():
        if (out / "data" / name).is_dir():
            continue
        yield f"writing {name}"
        haystack = haystack or Haystack(corpus.stories("train")[:STORIES], tokenizer)
        encoded = haystack.documents(mixture, LENGTHS[name], seed)
        write_encoded(out / "data" / name, encoded, tokenizer, DropReport(total=sum(mixture)))


class Haystack:
    """Sentences of stories, and documents made of them."""

    def __init__(self, stories: Sequence[str], tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.texts = sentences_of(stories)
        self.tokens = tokenizer.encode_batch(list(self.texts))
        known, often = np.unique(np.concatenate(self.tokens), return_counts=True)
        self.words = known[np.argsort(-often, kind="stable")][:WORDS]
        self.digits = np.array([tokenizer.encode(digit)[0] for digit in "0123456789"])
        self.room = sum(len(tokens) for tokens, _ in self._framed([], [], "10000"))

    def documents(self, mixture: Mixture, longest: int, seed: int) -> Iterator[Encoded]:
        """Documents of all kinds in random order, none longer than `longest` tokens."""
        rng = np.random.default_rng([seed, longest])
        makers = (self.hidden, self.echo)
        kinds = np.repeat(np.arange(len(makers)), mixture)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for kind in rng.permutation(kinds):
            upper = (SHORT[1], longest)[rng.integers(2)]
            length = int(np.exp(rng.uniform(np.log(SHORT[0]), np.log(upper))))
            parts = [([bos], False), *makers[kind](length - 2, rng), ([eos], False)]
            mask = [learned for tokens, learned in parts for _ in tokens]
            yield [token for tokens, _ in parts for token in tokens], mask

    def hidden(self, length: int, rng: np.random.Generator) -> list[Part]:
        """A key between sentences of stories, told at the end; what repeats it is learned."""
        at, left, chosen = int(rng.integers(len(self.texts))), length - self.room, list[int]()
        while (left := left - len(self.tokens[at])) >= 0:
            chosen.append(at)
            at = (at + 1) % len(self.texts)
        place = int(rng.integers(len(chosen) + 1))
        return self._framed(chosen[:place], chosen[place:], draw_key(rng))

    def echo(self, length: int, rng: np.random.Generator) -> list[Part]:
        """Digits or words in no order, again and again; what comes back is learned."""
        shortest, longest = PERIODS
        period = int(np.exp(rng.uniform(np.log(shortest), np.log(min(longest, length // 2)))))
        read = rng.choice(self.digits if rng.integers(2) else self.words, period).tolist()
        return [(read, False), (read * (length // period - 1), True)]

    def _framed(self, before: list[int], after: list[int], key: str) -> list[Part]:
        """Opening, sentences with the needle between them, question and answer."""
        told, repeated, end = NEEDLE.split("{key}")
        last = self.texts[after[-1]] if after else end

        def part(text: str, learned: bool = False) -> Part:
            return self.tokenizer.encode(text), learned

        return [
            part(OPENING),
            *((self.tokens[i], False) for i in before),
            part(f"{told}{key}{repeated}"),
            part(key, True),
            *([part(end)] if after else []),
            *((self.tokens[i], False) for i in after[:-1]),
            part(f"{last}{QUESTION}"),  # together: a point and a line break are one token
            part(f" {key}.", True),
        ]


def draw_key(rng: np.random.Generator) -> str:
    """A number of five digits that no examination asks for."""
    while True:
        number = int(rng.integers(10_000, 100_000))
        if not is_held_out(number):
            return str(number)
