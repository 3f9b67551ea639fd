"""Many questions answered together; answers come in the order of the questions.

The engine always has questions ahead of the one to be written next, so it stays full while answers
of unequal length wait for their turn. Killed at any moment, a run has lost at most those; the next
one goes on behind the last answer that was written. With seeds it gives the same rows as a run that
was never stopped, up to rounding, and to the byte where the engine is deterministic.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Self

from abyssal.engine.answer_file import AnswerFile
from abyssal.engine.llm import LLM
from abyssal.engine.questions import Key, Question, Questions, digest
from abyssal.engine.request import Completion, Delta, Request
from abyssal.errors import AbyssalError, DataError
from abyssal.tokenizer.chat import Layout, Message
from abyssal.tokenizer.control import END_THINK

AHEAD = 512  # questions under way or answered out of turn

Answered = dict[str, object]  # a row of the answer file


class Progress(NamedTuple):
    """Where a run stands after a pass of the model."""

    rows: list[Answered]  # newly answered, in the order of the questions
    finished: int  # questions so far, those answered out of turn included
    failed: int  # of them, those that could not be answered
    tokens: int  # written so far
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens written per second since the run began."""
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0


class Bulk:
    """A file of questions, less what a file of answers holds already.

    Raises:
        DataError, RequestError: a row cannot be used; no answer is written then.
        DataError: the file of answers belongs to other questions.
    """

    def __init__(self, questions: Questions, out: str | None = None):
        self.questions = questions
        asked = _checked(questions)
        self.num_questions = len(asked)
        self.answered: frozenset[Key] = frozenset()
        self.file = None if out is None else AnswerFile(out)
        if self.file:
            self.answered = _matched(self.file, asked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def run(
        self, llm: LLM, layout: Layout = "v3", ahead: int = AHEAD
    ) -> Generator[Progress, None, None]:
        """Answer what is left; rows are in the file before they are yielded.

        Nobody else may use this LLM meanwhile. Who stops reading stops the run.
        """
        left = (question for question in self.questions if question.key not in self.answered)
        with closing(answers(llm, left, layout, ahead)) as passes:
            for progress in passes:
                if self.file:
                    self.file.append(progress.rows)
                yield progress


def answers(
    llm: LLM, questions: Iterable[Question], layout: Layout = "v3", ahead: int = AHEAD
) -> Generator[Progress, None, None]:
    """Answer questions, `ahead` of them at a time; a row for each, in their order.

    A question that turns out to be impossible, for its length or its grammar, gets a row that says
    so.
    """
    source = iter(questions)
    desk = _Desk(llm, layout)
    try:
        for question in islice(source, ahead):
            desk.open(question)
        while desk.turns:
            desk.step()
            rows = desk.close_in_order()
            for question in islice(source, len(rows)):
                desk.open(question)
            yield desk.progress(rows)
    finally:
        desk.abandon()


@dataclass(slots=True)
class _Turn:
    """One question on its way."""

    question: Question
    requests: list[Request] = field(default_factory=list)
    deltas: dict[int, list[Delta]] = field(default_factory=dict)  # by request
    num_open: int = 0
    error: str | None = None

    def row(self) -> Answered:
        """What the file of answers says of it."""
        question = self.question
        own_id = {} if question.id is None else {"id": question.id}
        head: Answered = {"index": question.index, **own_id, **question.asked}
        if self.error is not None:
            return {**head, "finish_reason": "error", "error": self.error}
        said = [
            _said(Completion.from_deltas(request, self.deltas[request.id]))
            for request in self.requests
        ]
        return {**head, **said[0]} if len(said) == 1 else {**head, "answers": said}


class _Desk:
    """Questions with the engine and those that wait for their turn to be written."""

    def __init__(self, llm: LLM, layout: Layout):
        self.llm, self.layout = llm, layout
        self.turns: deque[_Turn] = deque()
        self.finished = self.failed = self.tokens = 0
        self.began_s = time.perf_counter()
        self._open: dict[int, _Turn] = {}  # by request

    def open(self, question: Question) -> None:
        """Hand a question to the engine."""
        turn = _Turn(question)
        self.turns.append(turn)
        try:
            turn.requests = self._requests(question)
            for request in turn.requests:
                self.llm.engine.add(request)
                self._open[request.id] = turn
                turn.deltas[request.id] = []
        except AbyssalError as problem:
            self._abort(turn)
            turn.error = str(problem)
            self._finish(turn)
        turn.num_open = len(turn.deltas)

    def step(self) -> None:
        """One pass of the model, if any question still needs one."""
        for delta in self.llm.engine.step() if self._open else ():
            turn = self._open.get(delta.request_id)
            if turn is None:  # of an earlier call that nobody read to its end
                continue
            turn.deltas[delta.request_id].append(delta)
            turn.error = turn.error or delta.error
            self.tokens += delta.token is not None
            if delta.finish_reason:
                del self._open[delta.request_id]
                turn.num_open -= 1
                if turn.num_open == 0:
                    self._finish(turn)

    def close_in_order(self) -> list[Answered]:
        """The rows of all questions that are finished and have no unfinished one before them."""
        rows = []
        while self.turns and not self.turns[0].num_open:
            rows.append(self.turns.popleft().row())
        return rows

    def progress(self, rows: list[Answered]) -> Progress:
        """Where things stand, with these rows newly closed."""
        elapsed_s = time.perf_counter() - self.began_s
        return Progress(rows, self.finished, self.failed, self.tokens, elapsed_s)

    def abandon(self) -> None:
        """Take everything back from the engine."""
        for turn in self.turns:
            self._abort(turn)

    def _requests(self, question: Question) -> list[Request]:
        llm, params = self.llm, question.params
        prompts = llm.prompts
        if not question.messages:
            return prompts.requests([prompts.read(question.asked["prompt"])], params)
        tokens = prompts.render(question.messages, self.layout, question.thinking, question.tools)
        params = prompts.ending_at_user(params)
        if params.grammar and question.thinking:
            after = llm.tokenizer.control(END_THINK)
            params = replace(params, grammar=replace(params.grammar, after=after))
        layout = self.layout if question.tools else None
        return prompts.requests([tokens], params, layout=layout)

    def _finish(self, turn: _Turn) -> None:
        self.finished += 1
        self.failed += turn.error is not None

    def _abort(self, turn: _Turn) -> None:
        for request in turn.requests:
            if self._open.pop(request.id, None):
                self.llm.engine.abort(request.id)
        turn.deltas.clear()


def _said(done: Completion) -> Answered:
    """The fields of one answer."""
    row: Answered = {"text": done.text}
    if done.reasoning is not None:
        row["reasoning"] = done.reasoning
    if done.tool_calls:
        row["tool_calls"] = Message("assistant", None, None, done.tool_calls).to_dict()[
            "tool_calls"
        ]
    row |= {
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
    }
    if done.logprobs is not None:
        row |= {"tokens": done.tokens, "logprobs": done.logprobs}
    if done.top_logprobs is not None:
        row["top_logprobs"] = done.top_logprobs
    return row


def _checked(questions: Questions) -> dict[Key, bytes]:
    """What every row asks, by its key; every one is read once before the first is answered."""
    asked: dict[Key, bytes] = {}
    for question in questions:
        if question.key in asked:
            raise DataError(f"{question.where}: the id {question.id!r:.60} was there before")
        asked[question.key] = digest(question.asked)
    return asked


def _matched(file: AnswerFile, asked: dict[Key, bytes]) -> frozenset[Key]:
    """Which questions a file answers; DataError if it answers others too."""
    for (kind, value), known in file.answered.items():
        if asked.get((kind, value)) != known:
            file.close()
            raise DataError(
                f"{file.path}: its answer with the {kind} {value!r:.60} belongs to another "
                "question; choose another file for the answers"
            )
    return frozenset(file.answered)
