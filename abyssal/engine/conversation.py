"""A conversation that goes on: history kept, answers streamed, the oldest turns dropped.

The model reads at most its context. When a question no longer fits beside the room its answer
needs, the oldest turns leave the history, and `num_dropped` says how many messages that were.
"""

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from abyssal.checkpoint.files import publish_json
from abyssal.engine.llm import LLM
from abyssal.engine.request import Delta, SamplingParams
from abyssal.errors import AbyssalError, DataError, RequestError
from abyssal.tokenizer.calls import CallPiece, join_calls
from abyssal.tokenizer.chat import Layout, Message

Deltas = Generator[Delta, None, None]  # close() ends the answer where it is

_NUM_SEEDS = 2**63


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What an answer cost, or all of them together."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompt_tokens, found in the prefix cache
    answer_tokens: int = 0
    first_token_s: float = 0.0  # from the question to the first token; of several, their sum
    writing_s: float = 0.0  # from the first token of an answer to its last

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens written per second once the first was there; None before there are two."""
        written = self.answer_tokens - self.answers
        return written / self.writing_s if written > 0 and self.writing_s > 0 else None

    def to_dict(self) -> dict[str, float | None]:
        """All of it by name, with the speed; of several answers the mean time to a first token."""
        mean_s = self.first_token_s / self.answers if self.answers else None
        return {**asdict(self), "first_token_s": mean_s, "tokens_per_s": self.tokens_per_s}

    def __add__(self, other: "Figures") -> "Figures":
        """Both together."""
        return Figures(
            answers=self.answers + other.answers,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            answer_tokens=self.answer_tokens + other.answer_tokens,
            first_token_s=self.first_token_s + other.first_token_s,
            writing_s=self.writing_s + other.writing_s,
        )


class Conversation:
    """One person and one model, turn by turn.

    Raises:
        DataError: the layout cannot think, or the tokenizer lacks its tokens.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        system: str | None = None,
        layout: Layout = "v3",
        thinking: bool = False,
    ):
        llm.count_tokens([Message("user", "")], layout, thinking)  # refuses what has no layout
        self.llm, self.params, self.layout, self.thinking = llm, params, layout, thinking
        self.system = system
        self.turns: list[Message] = []  # all but the system message
        self.num_dropped = 0  # messages the latest question pushed out
        self.latest = Figures()  # of the latest answer
        self.total = Figures()
        self._num_retries = 0  # of the latest question

    @property
    def messages(self) -> list[Message]:
        """What the model reads."""
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.turns]

    @property
    def question(self) -> str | None:
        """The latest message of the user."""
        return next((m.content for m in reversed(self.turns) if m.role == "user"), None)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns = []

    def ask(self, text: str) -> Deltas:
        """The answer to one more user message; if reading stops early, what was read of it is kept.

        Raises:
            RequestError: even alone, the message is longer than the model can read.
        """
        self._num_retries = 0
        return self._answer([*self.turns, Message("user", text)])

    def retry(self) -> Deltas:
        """Another answer to the latest question, in place of the one it had.

        Where the sampling values hold a seed, the k-th retry draws with that seed + k.

        Raises:
            RequestError: nothing was asked yet.
        """
        if self.question is None:
            raise RequestError("there is no question to answer again; ask one first")
        self._num_retries += 1
        answered = self.turns[-1].role == "assistant"
        return self._answer(self.turns[:-1] if answered else self.turns)

    def save(self, path: str | Path) -> None:
        """Write all messages as JSON in the shape of the API; the file is whole or as it was.

        Raises:
            DataError: it cannot be written.
        """
        path = Path(path)
        try:
            publish_json(path, {"messages": [message.to_dict() for message in self.messages]})
        except OSError as problem:
            reason = problem.strerror
            raise DataError(f"{path}: cannot be written ({reason}); choose another file") from None

    def load(self, path: str | Path) -> None:
        """Go on from the messages of a file: ``{"messages": [...]}`` or the list alone.

        Raises:
            DataError: the file holds no conversation that could go on; nothing has changed then.
        """
        messages = _read_messages(Path(path))
        self.llm.count_tokens(messages, self.layout, self.thinking)  # refuses what has no layout
        system = [message.content or "" for message in messages if message.role == "system"]
        self.system = "\n\n".join(system) or None
        self.turns = [message for message in messages if message.role != "system"]
        self._num_retries = 0

    def _answer(self, turns: list[Message]) -> Deltas:
        before, self.turns = self.turns, turns
        try:
            prompt_tokens = self._make_room()
            deltas = self.llm.stream(
                self.messages, self._seeded(), layout=self.layout, thinking=self.thinking
            )
        except AbyssalError:
            self.turns = before
            raise
        return self._remember(deltas, _Record(prompt_tokens), before)

    def _seeded(self) -> SamplingParams:
        seed = self.params.seed
        if seed is None:
            return self.params
        return replace(self.params, seed=(seed + self._num_retries) % _NUM_SEEDS)

    def _make_room(self) -> int:
        """Drop the oldest turns until half the context, or what the answer may need, is free.

        The tokens of what is left.
        """
        context = self.llm.config.max_position_embeddings
        room = context - min(self.params.max_tokens, context // 2)
        before = len(self.turns)
        while (size := self._size()) > room and (later := self._later_questions()):
            self.turns = self.turns[later[0] :]
        self.num_dropped = before - len(self.turns)
        return size

    def _size(self) -> int:
        return self.llm.count_tokens(self.messages, self.layout, self.thinking)

    def _later_questions(self) -> list[int]:
        """Where the user speaks, the first turn aside."""
        return [i for i, turn in enumerate(self.turns) if i and turn.role == "user"]

    def _remember(
        self, deltas: Iterator[Delta], record: "_Record", before: list[Message]
    ) -> Deltas:
        is_kept = True
        try:
            for delta in deltas:
                record.take(delta)
                yield delta
        except AbyssalError:  # it never began: the cache is too small, say
            is_kept = False
            raise
        finally:
            if is_kept:
                self._keep(record)
            else:
                self.turns = before

    def _keep(self, record: "_Record") -> None:
        self.turns.append(record.message(self.thinking))
        self.latest = record.figures()
        self.total += self.latest


@dataclass(slots=True)
class _Record:
    """One answer as it is read."""

    prompt_tokens: int
    text: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    tokens: int = 0
    cached_tokens: int = 0
    asked_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None
    last_s: float = 0.0

    def take(self, delta: Delta) -> None:
        """Add what came."""
        self.last_s = time.perf_counter()
        self.text += delta.text
        self.reasoning += delta.reasoning
        self.calls += delta.calls
        self.cached_tokens = delta.cached_tokens
        if delta.token is not None:
            self.tokens += 1
            self.first_s = self.last_s if self.first_s is None else self.first_s

    def message(self, thinking: bool) -> Message:
        """The answer as history."""
        reasoning = self.reasoning if thinking or self.reasoning else None
        return Message("assistant", self.text, reasoning, join_calls(self.calls))

    def figures(self) -> Figures:
        """What it cost."""
        if self.first_s is None:
            return Figures(prompt_tokens=self.prompt_tokens)
        return Figures(
            answers=1,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            answer_tokens=self.tokens,
            first_token_s=self.first_s - self.asked_s,
            writing_s=self.last_s - self.first_s,
        )


def _read_messages(path: Path) -> Sequence[Message]:
    remedy = "give a file that /save wrote"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror}); {remedy}") from None
    except (ValueError, RecursionError):  # RecursionError: brackets nested by the thousand
        raise DataError(f"{path}: not valid JSON; {remedy}") from None
    rows = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: holds no list of messages; {remedy}")
    try:
        messages = [Message.from_dict(row) for row in rows]
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from None
    if messages[-1].prefix:
        raise DataError(f"{path}: its last message is unfinished (prefix); {remedy}")
    return messages
