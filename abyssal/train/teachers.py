"""Who is asked for traces: a model folder on our engine, or any OpenAI-compatible endpoint.

Either takes questions and gives each its answers, in order, so that a file of them can be stopped
anywhere and gone on with. On our engine an answer depends on model, question, seed and its number
alone; an endpoint is sent a seed and promises what it promises.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx

from abyssal.engine import bulk
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.questions import Question
from abyssal.engine.request import SamplingParams
from abyssal.errors import RequestError
from abyssal.evals.puzzles import prompt_of
from abyssal.evals.records import identity
from abyssal.tokenizer.message import Message
from abyssal.train.forms import Form, Thinking

AT_ONCE = 16  # requests under way at an endpoint
ANSWER_S = 600.0  # without a sign of life
TRIES = 6  # of a request that an endpoint is too busy for
LONGEST_WAIT_S = 30.0  # between two of them
_BUSY = {408, 429, 500, 502, 503, 504, 529}
_CLOSE = "</think>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How a teacher is asked."""

    form: Form = "zero"
    layout: Thinking = "v3.1"  # of chats with a model folder
    answers: int = 4  # to each question
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512  # of an answer, its thought included
    seed: int = 0
    instruct: str = ""  # said behind each question, and not part of what a student reads

    def __post_init__(self) -> None:
        if not 1 <= self.answers <= 1024:
            raise RequestError(f"answers={self.answers}, expected 1 to 1024 to a question")
        self.params(0)  # which refuses impossible values

    def params(self, index: int) -> SamplingParams:
        """Of the question with this number."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            n=self.answers,
            seed=self.seed + index,
        )

    def put(self, question: str) -> str:
        """The question as the teacher gets it, before any template."""
        return f"{question}\n{self.instruct}" if self.instruct else question


class Written(NamedTuple):
    """One answer; its thought is None in the plain form, and where it was never closed."""

    thought: str | None
    text: str
    end: str  # "stop", or why it is not whole


Answered = tuple[int, list[Written]]  # a question's number, and its answers


class Teacher(Protocol):
    """Who can be asked."""

    @property
    def name(self) -> str:
        """What tells it from another."""

    def answer(
        self, asked: Iterable[tuple[int, str]], manner: Manner
    ) -> Generator[list[Answered], None, None]:
        """The answers to numbered questions, in their order; who stops reading stops it."""


class FolderTeacher:
    """A model folder, in this process."""

    def __init__(self, folder: str | Path):
        self.llm = LLM(folder, options=EngineOptions(deterministic=True))
        self.name = identity(folder)

    def answer(
        self, asked: Iterable[tuple[int, str]], manner: Manner
    ) -> Generator[list[Answered], None, None]:
        """On the engine, as many together as it holds."""
        questions = (_question(index, text, manner) for index, text in asked)
        with closing(bulk.answers(self.llm, questions, manner.layout)) as passes:
            for progress in passes:
                if progress.rows:
                    yield [_read_row(row, manner.form) for row in progress.rows]


class EndpointTeacher:
    """A service with OpenAI's `/v1/chat/completions`, or `/v1/completions` for the plain form."""

    def __init__(self, url: str, model: str, key: str | None = None, at_once: int = AT_ONCE):
        """`url` may end in /v1."""
        self.url = url.removesuffix("/").removesuffix("/v1")
        self.model, self.at_once = model, at_once
        self.name = f"{self.url} {model}"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def answer(
        self, asked: Iterable[tuple[int, str]], manner: Manner
    ) -> Generator[list[Answered], None, None]:
        """A request for each answer, some at once.

        Raises:
            RequestError: the service cannot be reached, refuses, or answers what is no answer.
        """
        source = iter(asked)
        waiting: deque[tuple[int, list[Future[Written]]]] = deque()
        with httpx.Client(base_url=self.url, headers=self._headers, timeout=ANSWER_S) as client:
            pool = ThreadPoolExecutor(self.at_once)

            def send(count: int) -> None:
                for index, text in islice(source, count):
                    bodies = [self._body(index, i, text, manner) for i in range(manner.answers)]
                    waiting.append((index, [pool.submit(_ask, client, *one) for one in bodies]))

            try:
                send(self.at_once)
                while waiting:
                    index, answers = waiting.popleft()
                    written = [one.result() for one in answers]
                    send(1)
                    yield [(index, written)]
            finally:
                pool.shutdown(cancel_futures=True)

    def _body(
        self, index: int, sample: int, text: str, manner: Manner
    ) -> tuple[str, dict[str, object]]:
        """Where to send one request, and what."""
        values: dict[str, object] = {
            "model": self.model,
            "max_tokens": manner.max_tokens,
            "temperature": manner.temperature,
            "top_p": manner.top_p,
            "seed": (manner.seed + index) * 1024 + sample,
        }
        if manner.form == "zero":
            return "/v1/completions", {**values, "prompt": prompt_of(manner.put(text))}
        messages = [{"role": "user", "content": manner.put(text)}]
        return "/v1/chat/completions", {**values, "messages": messages}


def _question(index: int, text: str, manner: Manner) -> Question:
    is_chat = manner.form == "chat"
    prompt = manner.put(text)
    return Question(
        index=index,
        where=f"question {index}",
        id=None,
        asked={"messages": []} if is_chat else {"prompt": prompt_of(prompt)},
        messages=(Message("user", prompt),) if is_chat else (),
        params=manner.params(index),
        thinking=is_chat,
        tools=(),
    )


def _read_row(row: bulk.Answered, form: Form) -> Answered:
    """A row of the engine's bulk answers; a question that could not be asked has none."""
    index = int(str(row["index"]))
    if "error" in row:
        return index, []
    several: Any = row.get("answers", [row])
    written = []
    for one in several:
        text, thought = str(one["text"]), one.get("reasoning")
        if form == "chat" and not text:  # the thought was not closed, or nothing came behind it
            thought, text = None, str(thought or "")
        written.append(Written(thought, text, str(one["finish_reason"])))
    return index, written


def _ask(client: httpx.Client, path: str, body: dict[str, object]) -> Written:
    """One answer; a busy endpoint is asked again."""
    for again in range(1, TRIES + 1):
        try:
            response = client.post(path, json=body)
        except httpx.HTTPError as problem:
            raise RequestError(
                f"{client.base_url} cannot be reached ({type(problem).__name__}: {problem}); "
                "start the service, or correct its address, and run the same command again"
            ) from None
        if response.status_code not in _BUSY or again == TRIES:
            break
        told = response.headers.get("Retry-After", "")
        time.sleep(min(float(told) if told.isdecimal() else 2.0**again / 2, LONGEST_WAIT_S))
    if response.is_error:
        raise RequestError(
            f"{client.base_url} answered {response.status_code}: {response.text[:200]!r}; see its "
            "model names, keys and limits, and run the same command again"
        )
    try:
        return _read_choice(response.json()["choices"][0])
    except (ValueError, KeyError, IndexError, TypeError):
        raise RequestError(
            f"{client.base_url} answered {response.text[:120]!r}, expected the choices of OpenAI's "
            f"{path}; is this another kind of service?"
        ) from None


def _read_choice(choice: dict[str, Any]) -> Written:
    """An answer with its thought, in a field of its own or, from some services, between tags."""
    end = str(choice["finish_reason"])
    if "message" not in choice:
        return Written(None, str(choice["text"]), end)
    message = choice["message"]
    text = message.get("content") or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought is None and _CLOSE in text:
        thought, _, text = text.partition(_CLOSE)
        thought = thought.lstrip().removeprefix("<think>")
    if not text:
        thought, text = None, thought or ""
    return Written(thought, text, end)
