"""What a small base model reads before it reasons: stories, sums, and exercises with solutions.

The exercises are asked as `evals/puzzles.py` asks them, and solved by three kinds of writers: some
show their steps between the tags, some write down the result at once, some know nothing of tags.
All are right. So the model can do a little of everything, and reinforcement has something to
choose from. No question that `is_held_out` is among them, not even as a bare sum.

Beside them are questions of general knowledge: as conversations for the second fine-tuning, as rows
for the last reinforcement, and as pairs of an answer and one to another question for its judge.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from abyssal.data import corpus
from abyssal.data.conversations import read_conversations
from abyssal.data.documents import DropReport
from abyssal.data.encoding import encode, write_encoded
from abyssal.evals.puzzles import Generator, Puzzle, prompt_of
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train.forms import Thinking

VOCAB_SIZE = 1024  # a small head: drawing a token costs what the vocabulary does
SUMS = ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2})
# Sums only: with "*" among them, reasoning-gym 0.1.25 computes from left to right, and its
# 3 + 7 * 0 is 0; with "-", a small model gets lines below zero wrong, however it thinks.
CHAINS = (
    "basic_arithmetic",
    {
        "min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1,
        "operators": ["+"], "allow_parentheses": False, "allow_negation": False,
    },
)  # fmt: skip
TASKS = (SUMS, CHAINS)
WRITERS = (0.15, 0.55)  # shares that show steps and that answer at once; others know no tags
LAYOUT: Thinking = "v3.1"  # of r1's chats: it thinks where it is asked to, and else answers at once
GENERAL = ("facts_qa", "chatterbot")  # files of the corpus
HELD_OUT_PAIRS = 100
_EXPRESSION = re.compile(r"-?\d+(?: [-+] \d+)+")
_DIGITS = re.compile(r"\d+")


class Mixture(NamedTuple):
    """How many documents of each kind, and whether general chats stand beside them."""

    stories: int = 9000
    sums: int = 6000  # documents of eight sums each
    exercises: int = 40_000
    tasks: tuple[tuple[str, Mapping[str, object]], ...] = TASKS
    writers: tuple[float, float] = WRITERS
    chats: bool = True  # for what comes behind r1/zero


def prepare(out: str | Path, seed: int = 1, mixture: Mixture | None = None) -> Iterator[str]:
    """Write OUT/tokenizer, and in OUT/data all that recipes r1/ read; says what it does next."""
    out, mixture = Path(out), mixture or Mixture()
    if not (out / "tokenizer" / "tokenizer.json").is_file():
        yield f"training a tokenizer of {VOCAB_SIZE:,} words"
        Tokenizer.train(_texts_for_tokenizer(seed), VOCAB_SIZE).save(out / "tokenizer")
    tokenizer = Tokenizer.load(out / "tokenizer")
    for name in ("base", "valid"):
        if (out / "data" / name).is_dir():
            continue
        yield f"writing {name}"
        texts = documents(seed, mixture) if name == "base" else corpus.stories("valid")[:300]
        report = DropReport(total=len(texts))
        write_encoded(out / "data" / name, encode(texts, tokenizer), tokenizer, report)
    if mixture.chats and not (out / "data" / "general").is_dir():
        yield "writing general"
        write_general(out / "data", tokenizer, seed)


def write_general(data: Path, tokenizer: Tokenizer, seed: int) -> None:
    """general.jsonl, pairs/train.jsonl and pairs/valid.jsonl, and last the shards: general/."""
    report = DropReport()
    paths = [corpus.path(name) for name in GENERAL]
    chats = list(read_conversations(paths, report))
    _write_rows(data / "general.jsonl", [{"messages": [m.to_dict() for m in c]} for c in chats])
    asked = [chat[:2] for chat in chats]
    others = np.random.default_rng([seed, 5]).permutation(len(asked))
    pairs = [
        {"prompt": q.content, "chosen": a.content, "rejected": asked[i][1].content}
        for (q, a), i in zip(asked, others, strict=True)
        if asked[i][1].content != a.content
    ]
    _write_rows(data / "pairs" / "train.jsonl", pairs[HELD_OUT_PAIRS:])
    _write_rows(data / "pairs" / "valid.jsonl", pairs[:HELD_OUT_PAIRS])
    write_encoded(data / "general", encode(chats, tokenizer, layout=LAYOUT), tokenizer, report)


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


def documents(seed: int, mixture: Mixture) -> list[str]:
    """All documents in random order."""
    rng = np.random.default_rng([seed, 4])
    stories = corpus.stories("train")
    chosen = rng.choice(len(stories), min(mixture.stories, len(stories)), replace=False)
    questions = _questions(mixture.tasks, seed, rng)
    texts = [stories[i] for i in chosen]
    texts += ["\n".join(_sum(next(questions)) for _ in range(8)) for _ in range(mixture.sums)]
    count, writers = mixture.exercises, mixture.writers
    texts += [exercise(next(questions), rng, writers) for _ in range(count)]
    order = rng.permutation(len(texts))
    return [texts[i] for i in order]


def exercise(
    puzzle: Puzzle, rng: np.random.Generator, writers: tuple[float, float] = WRITERS
) -> str:
    """A puzzle in the form it is asked in, and one writer's solution."""
    expression = _expression(puzzle)
    kind = rng.random()
    if kind < writers[0]:
        solved = f"<think> {steps(expression)} </think> <answer> {puzzle.answer} </answer>"
    elif kind < sum(writers):
        whole = f"{expression} = {puzzle.answer}"
        solved = f"<think> {whole} </think> <answer> {puzzle.answer} </answer>"
    else:
        solved = (
            f"The answer is {puzzle.answer}.",
            f"{expression} = {puzzle.answer}",
            f"It is {puzzle.answer}. {steps(expression)}",
        )[rng.integers(3)]
    return f"{prompt_of(puzzle.question)} {solved}"


def steps(expression: str) -> str:
    """``47 + 38`` as ``7 + 8 = 15, 40 + 30 = 70, 70 + 15 = 85``; more terms from left to right."""
    first, *rest = expression.split()
    if len(rest) == 2:
        return _by_digits(int(first), rest[0], int(rest[1]))
    done, so_far = [], int(first)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        done.append(_line(so_far, sign, int(term)))
        so_far = _value(so_far, sign, int(term))
    return ", ".join(done)


def _by_digits(left: int, sign: str, right: int) -> str:
    if left < 10 and right < 10:
        return _line(left, sign, right)
    ones = _value(left % 10, sign, right % 10)
    tens = _value(left - left % 10, sign, right - right % 10)
    joined = _line(tens, "+" if ones >= 0 else "-", abs(ones))
    parts = [_line(left % 10, sign, right % 10), _line(left - left % 10, sign, right - right % 10)]
    return ", ".join([*parts, joined])


def _line(left: int, sign: str, right: int) -> str:
    return f"{left} {sign} {right} = {_value(left, sign, right)}"


def _value(left: int, sign: str, right: int) -> int:
    return left + right if sign == "+" else left - right


def _sum(puzzle: Puzzle) -> str:
    return f"{_expression(puzzle)} = {puzzle.answer}"


def _expression(puzzle: Puzzle) -> str:
    found = _EXPRESSION.search(puzzle.question)
    assert found is not None, puzzle.question
    return found[0]


def _questions(
    tasks: Sequence[tuple[str, Mapping[str, object]]], seed: int, rng: np.random.Generator
) -> Iterator[Puzzle]:
    """Puzzles of the tasks in turn at random, none of them held out."""
    sources = [Generator(task, seed + 1000, settings).walk() for task, settings in tasks]
    while True:
        yield next(sources[rng.integers(len(sources))])[1]


def _texts_for_tokenizer(seed: int) -> Sequence[str]:
    """Without digits: so none are joined, and a number is the digits it is written with."""
    texts = documents(seed, Mixture(stories=6000, sums=0, exercises=3000))
    return [_DIGITS.sub("", text) for text in texts]
