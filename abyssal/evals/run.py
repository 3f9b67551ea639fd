"""An evaluation: tasks put to a model, sample by sample, with what is done kept in files.

Items come in one shuffled order that never changes, so that any number of them is a fair sample,
and a larger --limit goes on where a smaller one ended. A sample's line depends on the model, the
settings and its item alone: killed anywhere and run again, the files are the same to the byte.
"""

import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from abyssal.checkpoint.files import publish_json
from abyssal.engine import bulk
from abyssal.engine.likelihood import Continuation, Scorer
from abyssal.engine.llm import LLM
from abyssal.engine.questions import Question as Asked
from abyssal.engine.request import SamplingParams
from abyssal.errors import RequestError
from abyssal.evals import drafts, experts, grades
from abyssal.evals.endings import chosen, continuations
from abyssal.evals.harness import windows
from abyssal.evals.records import RESULTS, Records, Row, claim, head, identity
from abyssal.evals.summary import summary
from abyssal.evals.task import AnswerTask, ChoiceTask, Item, Task, Template, TextTask
from abyssal.tokenizer.template import Layout

CHUNK = 128  # items scored between two writes
ANSWER_TOKENS = 16  # that examples leave to an ending
R1_TEMPERATURE, R1_TOP_P = 0.6, 0.95  # of several samples: DeepSeek-R1, arXiv 2501.12948


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What scores depend on besides the model."""

    template: Template = "text"
    layout: Layout = "v3"  # of chats
    thinking: bool = False
    samples: int = 1  # answers to each question; one: greedy
    max_tokens: int | None = None  # of an answer; None: the task's own
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 1 <= self.samples <= 1024:
            raise RequestError(f"samples={self.samples}, expected 1 to 1024 answers to a question")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens={self.max_tokens}, expected at least 1")


class Progress(NamedTuple):
    """Where an evaluation stands."""

    task: str
    done: int  # items, those of an earlier run included
    total: int
    score: float  # mean of the first metric so far, of this run's items


class Evaluation:
    """Some tasks for one model, in one folder.

    Raises:
        RequestError: the limit is impossible.
        DataError: the folder belongs to another evaluation.
    """

    def __init__(
        self,
        llm: LLM,
        folder: str | Path,
        tasks: Sequence[Task],
        out: str | Path,
        settings: Settings | None = None,
        limit: int | None = None,
    ):
        check_limit(limit)
        self.llm, self.tasks, self.settings = llm, tasks, settings or Settings()
        self.limit, self.model = limit, identity(folder)
        self.out = claim(out, {"model": self.model, **asdict(self.settings)})
        self._scorer = Scorer(llm.engine)

    def run(self) -> Generator[Progress, None, None]:
        """Do what is left; lines are in their file before they are told of.

        Nobody else may use this LLM meanwhile. Who stops reading stops the run.
        """
        for task in self.tasks:
            yield from self._run(task)

    def items(self, task: Task) -> list[Item]:
        """What is asked of a task, in order."""
        return sample(task, self.limit)

    def rows(self, task: Task) -> list[Row]:
        """Every line of a task that is done."""
        with closing(Records(self.out, task.name)) as records:
            return records.rows(len(self.items(task)))

    def results(self) -> dict[str, object]:
        """Scores, experts and drafts of what is done, also written to results.json."""
        rows = {task.name: self.rows(task) for task in self.tasks}
        found: dict[str, object] = {
            "model": self.model,
            "settings": asdict(self.settings),
            "tasks": {task.name: summary(task, rows[task.name]) for task in self.tasks},
        }
        config = self.llm.config
        if self._scorer.has_experts:
            texts = experts.by_domain(rows)
            context = config.max_position_embeddings
            loads = experts.loads(self._scorer, self.llm.tokenizer, texts, context)
            found["experts"] = experts.section(loads)
        if config.num_nextn_predict_layers:
            texts_of_all = [str(row["prompt"]) for lines in rows.values() for row in lines]
            found["mtp"] = drafts.acceptance(self.llm, _spread(texts_of_all, drafts.PROMPTS))
        publish_json(self.out / RESULTS, found)
        return found

    def _run(self, task: Task) -> Generator[Progress, None, None]:
        items = self.items(task)
        with closing(Records(self.out, task.name)) as records:
            done = records.done(items)
            left = [(i, item) for i, item in enumerate(items) if i not in done]
            count, total = len(done), 0.0
            for rows in self._answered(task, left):
                records.append(rows)
                count += len(rows)
                total += sum(float(row[first_metric(task, self.settings)]) for row in rows)
                score = total / max(count - len(done), 1)
                yield Progress(task.name, count, len(items), score)
            if not left:
                yield Progress(task.name, count, len(items), float("nan"))

    def _answered(self, task: Task, left: list[tuple[int, Item]]) -> Iterator[list[Row]]:
        if isinstance(task, AnswerTask):
            return self._answers(task, left)
        chunks = (left[i : i + CHUNK] for i in range(0, len(left), CHUNK))
        if isinstance(task, TextTask):
            return (self._texts(chunk) for chunk in chunks)
        return (self._choices(task, chunk) for chunk in chunks)

    # By likelihood

    def _choices(self, task: ChoiceTask, left: list[tuple[int, Item]]) -> list[Row]:
        choices = [
            task.choice(item, lambda text: self._fits(text, ANSWER_TOKENS)) for _, item in left
        ]
        pairs = [(one.context, ending) for one in choices for ending in one.endings]
        sequences = iter(
            continuations(self.llm.tokenizer, pairs, self.llm.config.max_position_embeddings)
        )
        groups = [[next(sequences) for _ in one.endings] for one in choices]
        scored = self._scorer.score(groups)
        rows = []
        for (i, item), one, found in zip(left, choices, scored, strict=True):
            rows.append(
                head(i, item) | chosen(one, [each.logprob for each in found], task.normalized)
            )
        return rows

    def _texts(self, left: list[tuple[int, Item]]) -> list[Row]:
        tokenizer, context = self.llm.tokenizer, self.llm.config.max_position_embeddings
        encoded = tokenizer.encode_batch([item.text for _, item in left])
        rows = []
        for (i, item), tokens in zip(left, encoded, strict=True):
            stretches = windows([tokenizer.bos_token_id, *tokens], context)
            groups = [[Continuation(*window)] for window in stretches]
            nats = -sum(one.logprob for (one,) in self._scorer.score(groups))
            rows.append(head(i, item) | {"nats": nats, "bytes": len(item.text.encode())})
        return rows

    # By writing

    def _answers(self, task: AnswerTask, left: list[tuple[int, Item]]) -> Iterator[list[Row]]:
        where = dict(left)
        asked = (self._asked(task, i, item) for i, item in left)
        with closing(bulk.answers(self.llm, asked, self.settings.layout)) as passes:
            for progress in passes:
                if progress.rows:
                    rows = []
                    for answer in progress.rows:
                        i = int(str(answer["index"]))
                        rows.append(head(i, where[i]) | self._graded(task, where[i], answer))
                    yield rows

    def _asked(self, task: AnswerTask, index: int, item: Item) -> Asked:
        settings, context = self.settings, self.llm.config.max_position_embeddings
        question = task.question(
            item, settings.template, lambda text: self._fits(text, context // 2)
        )
        several = settings.samples > 1
        params = SamplingParams(
            max_tokens=settings.max_tokens or question.max_tokens,
            temperature=R1_TEMPERATURE if several else 0.0,
            top_p=R1_TOP_P if several else 1.0,
            n=settings.samples,
            seed=settings.seed + index,
            stop=question.stop,
        )
        is_text = isinstance(question.prompt, str)
        return Asked(
            index=index,
            where=item.id,
            id=None,
            asked={"prompt": question.prompt} if is_text else {"messages": []},
            messages=() if isinstance(question.prompt, str) else question.prompt,
            params=params,
            thinking=settings.thinking,
            tools=(),
        )

    def _graded(self, task: AnswerTask, item: Item, answer: bulk.Answered) -> Row:
        """The answers to a question and what they are worth."""
        if "error" in answer:
            marks = [0.0] * self.settings.samples
            votes = None if task.vote is None else [None] * len(marks)
            return {"error": answer["error"], "answers": [], **_scores(marks, votes)}
        several = answer.get("answers")
        texts = several if isinstance(several, list) else [answer]
        rows: list[Row] = []
        for one in texts:
            text = str(one["text"])
            said = {} if task.vote is None else {"vote": task.vote(item, text)}
            end, grade = one["finish_reason"], task.grade(item, text)
            rows.append({"text": text, "end": end, "grade": grade, **said})
        votes = None if task.vote is None else [row["vote"] for row in rows]
        return {"answers": rows, **_scores([row["grade"] for row in rows], votes)}

    def _fits(self, text: str, answer_tokens: int) -> bool:
        tokens = len(self.llm.tokenizer.encode(text, bos=True))
        return tokens + answer_tokens <= self.llm.config.max_position_embeddings


def check_limit(limit: int | None) -> None:
    """Raise RequestError where no sample would be left."""
    if limit is not None and limit < 1:
        raise RequestError(f"limit={limit}, expected at least 1 sample of each task")


def sample(task: Task, limit: int | None) -> list[Item]:
    """The items of a task in their one shuffled order, up to a limit."""
    return list(_shuffled(task)[:limit])


@cache
def _shuffled(task: Task) -> tuple[Item, ...]:
    items = list(task.items())
    random.Random(task.name).shuffle(items)
    return tuple(items)


def first_metric(task: Task, settings: Settings) -> str:
    """What a task is known by."""
    if isinstance(task, AnswerTask):
        return "pass@1"
    return "nats" if isinstance(task, TextTask) else "acc"


def _spread(texts: list[str], count: int) -> list[str]:
    """Some of the texts, evenly from all of them."""
    step = max(len(texts) // count, 1)
    return texts[::step][:count]


def _scores(marks: list[float], votes: Sequence[str | None] | None) -> Row:
    """pass@1 is the mean; of several also whether any is right, and whether the majority is."""
    scores: Row = {"pass@1": sum(marks) / len(marks)}
    if len(marks) > 1:
        scores[f"pass@{len(marks)}"] = max(marks)
    if len(marks) > 1 and votes is not None:
        place = grades.majority(votes)
        scores[f"cons@{len(marks)}"] = 0.0 if place is None else marks[place]
    return scores
