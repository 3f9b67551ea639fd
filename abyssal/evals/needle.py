"""A needle in a haystack: whether a model finds a key that it read anywhere in a long text.

A sentence with a key is hidden in stories the shipped recipes never read, at a depth from 0 (the
beginning) to 1 (right before the question), in prompts of given lengths. Keys are numbers of five
digits, as published, or words of the stories, for models that have never read a number.

    exact     greedy writing begins with the key
    choice    of ten keys, the hidden one is the likeliest; chance is 0.1, for models too small to
              write one

Passkey retrieval: Mohtashami and Jaggi 2023 (arXiv 2305.16300); a map over lengths and depths as in
DeepSeek-V3, figure 8. What is done is kept in files, as in `run.py`, and an interrupted search goes
on with them.
"""

import random
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from abyssal.checkpoint.files import publish_json
from abyssal.config import ModelConfig, RopeScaling
from abyssal.data import corpus, subjects
from abyssal.engine.likelihood import Scorer
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.errors import RequestError
from abyssal.evals.endings import chosen, continuations
from abyssal.evals.intervals import interval
from abyssal.evals.records import RESULTS, Records, Row, claim, head, identity
from abyssal.evals.task import Choice, Item
from abyssal.model.transformer import DeepSeekV3
from abyssal.report.heatmap import heat_map
from abyssal.tokenizer.bpe import Tokenizer

OPENING = "There is a pass key hidden in this text. Find it and remember it.\n\n"
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "\n\nWhat is the pass key? The pass key is"
KEYS = 10  # to choose from
WORDS = tuple(sorted(subjects.WORDS["creatures"] | subjects.WORDS["toys"]))
METRICS = ("exact", "choice")
EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NAME = "needle"


def is_held_out(number: int) -> bool:
    """Whether a key is for examinations only: one number in seven; training hides the others."""
    return number % 7 == 3


NUMBERS = tuple(str(number) for number in range(10_000, 100_000) if is_held_out(number))


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Where needles are hidden."""

    lengths: tuple[int, ...]  # of prompt and key together, in tokens
    depths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    trials: int = 5  # of each length and depth, with texts and keys of their own
    keys: Literal["numbers", "words"] = "numbers"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if not self.lengths or not self.depths or self.trials < 1:
            raise RequestError("a search needs at least one length, one depth and one trial")
        if len(set(self.lengths)) + len(set(self.depths)) < len(self.lengths) + len(self.depths):
            raise RequestError("a length or a depth is given twice")
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise RequestError(f"depths={list(self.depths)}, expected numbers from 0 to 1")


class Progress(NamedTuple):
    """Where a search stands."""

    done: int
    total: int
    found: Mapping[str, float]  # means of this run's trials so far


def search(
    llm: LLM, folder: str | Path, out: str | Path, what: Search
) -> Generator[Progress, None, None]:
    """Do what is left of a search, shortest prompts first; the map is then in results.json.

    Nobody else may use this LLM meanwhile. Who stops reading stops the run.

    Raises:
        RequestError: a length is more than the model reads (see `opened`), or less than the
            question takes.
        DataError: `out` belongs to another search.
    """
    context = llm.config.max_position_embeddings
    if max(what.lengths) > context:
        raise RequestError(f"a length of {max(what.lengths):,} tokens; the model reads {context:,}")
    items, scorer = _items(what), Scorer(llm.engine)
    scaling = llm.config.rope_scaling
    positions = {
        "context": ModelConfig.load(
            folder
        ).max_position_embeddings,  # without what `opened` changed
        "rope": f"{scaling.type}:{scaling.factor:g}" if scaling else "plain",
    }
    run = {
        "model": identity(folder),
        **positions,
        **asdict(what),
        "lengths": sorted(what.lengths),
        "depths": list(what.depths),
    }
    with closing(Records(claim(out, run), NAME)) as records:
        done = records.done(items)
        sums = dict.fromkeys(METRICS, 0.0)
        for count, (i, item) in enumerate(
            ((i, item) for i, item in enumerate(items) if i not in done), 1
        ):
            row = head(i, item) | _answered(llm, scorer, item)
            records.append([row])
            sums = {name: total + row[name] for name, total in sums.items()}
            means = {name: total / count for name, total in sums.items()}
            yield Progress(len(done) + count, len(items), means)
        publish_json(Path(out) / RESULTS, results(what, records.rows(len(items))) | positions)


def opened(folder: str | Path, longest: int, scaling: RopeScaling | None = None) -> LLM:
    """The model of a folder, ready for a search; where `longest` tokens are more than it was made
    for, or `scaling` is another, under positions that it was not trained with.

    Raises:
        ConfigError: the scaling does not reach that far.
    """
    own = ModelConfig.load(folder)
    config = replace(
        own,
        max_position_embeddings=max(longest, own.max_position_embeddings),
        rope_scaling=scaling or own.rope_scaling,
    )
    options = EngineOptions(deterministic=True)
    if config == own:
        return LLM(folder, options=options)
    return LLM(DeepSeekV3.load(folder, config), Tokenizer.load(folder), options=options)


def evenly(count: int) -> tuple[float, ...]:
    """That many depths from 0 to 1; one is in the middle."""
    if count == 1:
        return (0.5,)
    return tuple(round(i / (count - 1), 4) for i in range(count))


def _items(what: Search) -> list[Item]:
    """Every trial, the key being all that a line says of its prompt."""
    possible = WORDS if what.keys == "words" else NUMBERS
    found = []
    for length in sorted(what.lengths):
        for depth in what.depths:
            for trial in range(what.trials):
                draw = random.Random(f"{what.seed} {length} {depth} {trial}")
                keys = draw.sample(possible, KEYS)
                right = draw.randrange(KEYS)
                data = {"length": length, "depth": depth, "keys": keys, "right": right,
                        "start": draw.random()}  # fmt: skip
                text = NEEDLE.format(key=keys[right]).strip()
                found.append(Item(f"{length}-{depth:g}-{trial}", text, data))
    return found


def _answered(llm: LLM, scorer: Scorer, item: Item) -> Row:
    """What the model makes of one prompt."""
    keys, right = item.data["keys"], item.data["right"]
    endings = [f" {key}" for key in keys]
    room = 1 + max(len(llm.tokenizer.encode(ending)) for ending in endings)
    text = prompt(llm, item, room)
    pairs = [(text, ending) for ending in endings]
    (scored,) = scorer.score([continuations(llm.tokenizer, pairs, item.data["length"])])
    choice = Choice(text, tuple(endings), right, tuple(keys))
    logprobs = [one.logprob for one in scored]
    written = llm.generate(text, max_tokens=room, temperature=0.0, ignore_eos=True).text
    first = re.search(r"\w+", written)
    return {
        "length": item.data["length"],
        "depth": item.data["depth"],
        "tokens": len(llm.tokenizer.encode(text, bos=True)),
        "text": written,
        "exact": float(first is not None and first.group() == keys[right]),
        "choice": chosen(choice, logprobs, False)["acc"],
        "logprobs": logprobs,
    }


def prompt(llm: LLM, item: Item, room: int) -> str:
    """Sentences without a key and the needle between two of them, BOS and `room` tokens left over.

    Raises:
        RequestError: not even the question fits.
    """
    length, needle = item.data["length"], NEEDLE.format(key=item.data["keys"][item.data["right"]])

    def count(text: str) -> int:
        return len(llm.tokenizer.encode(text, bos=True))

    left = length - room - count(OPENING + needle + QUESTION)
    if left < 0:
        raise RequestError(f"a length of {length} tokens; the question alone takes {length - left}")
    sentences, keys = _sentences(), set(item.data["keys"])
    first, chosen_ones = int(item.data["start"] * len(sentences)), list[str]()
    for i in range(len(sentences) * (1 + length // 1000)):
        sentence = sentences[(first + i) % len(sentences)]
        if not keys.isdisjoint(re.findall(r"\w+", sentence)):
            continue
        left -= count(sentence) - 1
        if left < 0:
            break
        chosen_ones.append(sentence)
    while True:
        place = round(item.data["depth"] * len(chosen_ones))
        text = "".join([OPENING, *chosen_ones[:place], needle, *chosen_ones[place:], QUESTION])
        if not chosen_ones or count(text) + room <= length:
            return text
        chosen_ones.pop()  # tokens that end otherwise beside others


@cache
def _sentences() -> tuple[str, ...]:
    """The held-out stories."""
    return sentences_of(corpus.stories("valid"))


def sentences_of(stories: Sequence[str]) -> tuple[str, ...]:
    """Stories sentence by sentence, each with the space before it."""
    text = " ".join(" ".join(story.split()) for story in stories)
    return tuple(f" {sentence}" for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence)


# What was found


def results(what: Search, rows: Sequence[Row]) -> dict[str, Any]:
    """The map of each metric, [length][depth], and its mean over all with an interval."""
    lengths = sorted(what.lengths)
    found: dict[str, Any] = {
        "task": NAME, "lengths": lengths, "depths": list(what.depths), "trials": what.trials,
        "keys": what.keys, "seed": what.seed, "chance": {"exact": 0.0, "choice": 1 / KEYS},
    }  # fmt: skip
    for metric in METRICS:
        by_place: dict[tuple[int, float], list[float]] = {}
        for row in rows:
            by_place.setdefault((row["length"], row["depth"]), []).append(row[metric])
        found[metric] = {
            "map": [
                [sum(some) / len(some) for depth in what.depths for some in [by_place[n, depth]]]
                for n in lengths
            ],
            "by_length": [
                interval([row[metric] for row in rows if row["length"] == n])._asdict()
                for n in lengths
            ],
            "all": interval([row[metric] for row in rows])._asdict(),
        }
    return found


def table(found: Mapping[str, Any], metric: str) -> list[tuple[str, ...]]:
    """The map for a terminal: a row a depth behind one of lengths, scores in percent."""
    heading = ("depth", *(f"{length:,}" for length in found["lengths"]))
    rows = zip(*found[metric]["map"], strict=True)
    return [
        heading,
        *(
            (f"{depth:.0%}", *(f"{100 * score:.0f}" for score in row))
            for depth, row in zip(found["depths"], rows, strict=True)
        ),
    ]


def figure(found: Mapping[str, Any], metric: str, name: str = "") -> str:
    """The map for a page: a column a length, depths from top to bottom; colors are EDGES."""
    depths, columns = found["depths"], found[metric]["map"]
    remarks = []
    for length, column in zip(found["lengths"], columns, strict=True):
        found_at = zip(depths, column, strict=True)
        remarks.append([f"{length:,} tokens", *(f"depth {d:.0%}: {s:.0%}" for d, s in found_at)])
    lengths = ", ".join(f"{length:,}" for length in found["lengths"])
    return heat_map(
        columns, EDGES, remarks,
        name=name or f"Needle in a haystack, {metric}",
        label=f"share of keys found by {metric} at {len(columns)} lengths and {len(depths)} depths",
        caption=f"lengths {lengths} tokens, left to right; depths {depths[0]:.0%} to "
        f"{depths[-1]:.0%}, top to bottom; {found['trials']} trials each",
    )  # fmt: skip
