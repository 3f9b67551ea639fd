"""Traces: questions with thoughts and answers of a teacher, sampled, sifted, made into shards.

One way for three uses in DeepSeek-R1 (arXiv 2501.12948): the cold start, the rejection sampling
before the second fine-tuning, and the data a smaller student is distilled from.

    OUT/run.json         who was asked, and how
    OUT/answers.jsonl    all answers, a line a question; these lines are the state
    OUT/traces.jsonl     the answers worth learning
    OUT/report.json      how many fell, and why
    OUT/shards/          the same for stage "sft": only the response is learned

Everything below answers.jsonl is made of its lines alone: with another sieve or form, the same
command makes them anew and asks nobody. No question that `is_held_out` is ever asked.
"""

import json
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from abyssal import recipe as recipes
from abyssal.checkpoint.files import publish_json
from abyssal.data.conversations import encode_conversation
from abyssal.data.documents import DropReport
from abyssal.data.encoding import Encoded, write_encoded
from abyssal.errors import ConfigError, DataError
from abyssal.evals.puzzles import Puzzle, prompt_of
from abyssal.evals.records import Records, claim, head
from abyssal.evals.task import Item
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.message import Message
from abyssal.train.forms import Form, Thinking
from abyssal.train.questions import Questions
from abyssal.train.reinforce import Task
from abyssal.train.sieve import Kept, Sieve, sift
from abyssal.train.teachers import Manner, Teacher, Written

STALE = 10_000  # known questions in a row after which a task has no new ones


class Trace(NamedTuple):
    """A line of traces.jsonl."""

    number: int  # of the question
    task: str
    question: str
    answer: str  # expected
    prompt: str  # as the teacher was asked
    text: str  # as the teacher wrote it
    thought: str
    final: str  # what a student says after the thought
    rewards: dict[str, float]
    teacher: str


class Progress(NamedTuple):
    """Where the sampling stands."""

    done: int  # questions, those of an earlier run included
    total: int
    answers: int  # of this run so far
    good: int  # of them, those that go through the sieve


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing:
    """What shards are written for."""

    tokenizer: Path  # the student's, a folder
    form: Form = "chat"
    layout: Thinking = "v3.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tasks:
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks: expected at least one")


class Sampling:
    """Questions of some tasks put to one teacher, in one folder.

    Raises:
        DataError: the folder holds answers of another teacher, or to other questions.
    """

    def __init__(
        self, teacher: Teacher, tasks: Sequence[Task], manner: Manner, out: str | Path, number: int
    ):
        """`number` questions are asked; with a larger one the same command goes on."""
        if number < 1:
            raise ConfigError(f"questions={number}, expected at least 1")
        self.teacher, self.manner = teacher, manner
        asked = {"tasks": [asdict(task) for task in tasks], **asdict(manner)}
        plain = json.loads(json.dumps({"teacher": teacher.name, **asked}))
        self.out = claim(out, plain, "answers")
        self.puzzles = list(islice(questions(tasks, manner.seed), number))

    def run(self, sieve: Sieve) -> Generator[Progress, None, None]:
        """Ask what is left; lines are in their file before they are told of."""
        items = [_item(i, puzzle) for i, puzzle in enumerate(self.puzzles)]
        answers = good = 0
        with closing(Records(self.out, "answers")) as records:
            done = records.done(items)
            left = ((i, item.text) for i, item in enumerate(items) if i not in done)
            finished = len(done)
            yield Progress(finished, len(items), 0, 0)
            with closing(self.teacher.answer(left, self.manner)) as answered:
                for some in answered:
                    records.append(
                        [
                            head(i, items[i]) | {"answers": [one._asdict() for one in written]}
                            for i, written in some
                        ]
                    )
                    finished += len(some)
                    for i, written in some:
                        kept = sift(self.puzzles[i], written, self.manner.form, sieve, DropReport())
                        answers, good = answers + len(written), good + len(kept)
                    yield Progress(finished, len(items), answers, good)

    def publish(self, sieve: Sieve, writing: Writing) -> DropReport:
        """Write traces, report and shards of all answers; DataError where none is worth it."""
        tokenizer = Tokenizer.load(writing.tokenizer)
        report = DropReport()
        traces = list(self.traces(sieve, report))
        publish_json(self.out / "report.json", {"questions": len(self.puzzles), **report.to_dict()})
        lines = [json.dumps(trace._asdict(), ensure_ascii=False) + "\n" for trace in traces]
        draft = self.out / ".traces.jsonl"
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(self.out / "traces.jsonl")
        shutil.rmtree(self.out / "shards", ignore_errors=True)
        if not traces:
            raise DataError(
                f"{self.out}: no answer is worth learning: {report.summary()}; raise --answers or "
                "--questions, take easier tasks, or ask another teacher"
            )
        encoded = (encode(trace, tokenizer, writing) for trace in traces)
        write_encoded(self.out / "shards", encoded, tokenizer, report)
        return report

    def traces(self, sieve: Sieve, report: DropReport) -> Iterator[Trace]:
        """The answers worth learning, in the order of their questions."""
        with closing(Records(self.out, "answers")) as records:
            rows = records.rows(len(self.puzzles))
        for row in rows:
            index = int(row["index"])
            puzzle = self.puzzles[index]
            written = [Written(**one) for one in row["answers"]]
            if not written:
                report.total += 1
                report.drop("too long to be asked", puzzle.question)
            for kept in sift(puzzle, written, self.manner.form, sieve, report):
                yield self._trace(index, puzzle, kept)

    def _trace(self, number: int, puzzle: Puzzle, kept: Kept) -> Trace:
        written, reply, is_zero = kept.written, kept.reply, self.manner.form == "zero"
        prompt = self.manner.put(puzzle.question)
        whole = written.text if is_zero else f"<think>{written.thought}</think>{written.text}"
        return Trace(
            number=number,
            task=puzzle.task,
            question=puzzle.question,
            answer=puzzle.answer,
            prompt=prompt_of(prompt) if is_zero else prompt,
            text=whole,
            thought=reply.thought.strip(),
            final=(reply.answer or "") if is_zero else written.text.strip(),
            rewards={
                name: getattr(kept.parts, name) for name in ("accuracy", "format", "language")
            },
            teacher=self.teacher.name,
        )


def questions(tasks: Sequence[Task], seed: int) -> Iterator[Puzzle]:
    """Different questions of some tasks by their weights, none of them held out.

    A larger number of them begins with the same.

    Raises:
        ConfigError: there are no more.
    """
    source, known, stale = Questions(tasks, seed, held_out=0), set[str](), 0
    for draw in count():
        (puzzle,) = source.next(1, draw)
        stale = stale + 1 if puzzle.question in known else 0
        if stale > STALE:
            raise ConfigError(
                f"the tasks have only {len(known):,} different questions; ask for fewer, or give "
                "tasks wider settings"
            )
        if not stale:
            known.add(puzzle.question)
            yield puzzle


def tasks_of(recipe: str | Path) -> tuple[Task, ...]:
    """The tasks that a recipe of stage "grpo" asks.

    Raises:
        ConfigError: there is no such recipe, or it has no tasks.
    """
    values = recipes.load(recipe)
    where = str(recipe)
    recipes.stage_of(values, ("grpo",), where)
    return recipes.fill(_Tasks, {"tasks": values.get("tasks", [])}, where).tasks


def encode(trace: Trace, tokenizer: Tokenizer, writing: Writing) -> Encoded:
    """The tokens of a trace in the form a student is asked in, and which to learn: the response."""
    if writing.form == "chat":
        asked = Message("user", trace.question)
        said = Message("assistant", trace.final, reasoning=trace.thought)
        return encode_conversation([asked, said], tokenizer, writing.layout)
    prompt = tokenizer.encode(prompt_of(trace.question), bos=True)
    response = f" <think> {trace.thought} </think> <answer> {trace.final} </answer>"
    written = tokenizer.encode(response, eos=True)
    return [*prompt, *written], [False] * len(prompt) + [True] * len(written)


def _item(index: int, puzzle: Puzzle) -> Item:
    return Item(f"{puzzle.task}-{index}", puzzle.question, {})
