"""A conversation that goes on: history kept, answers streamed, the oldest turns dropped.

The model reads at most its context. When a question no longer fits beside the room its answer
needs, the oldest turns leave the history, and `num_dropped` says how many messages that were.
"""

from collections.abc import Iterator

from abyssal.engine.llm import LLM
from abyssal.engine.request import Delta, SamplingParams
from abyssal.errors import RequestError
from abyssal.tokenizer.chat import Layout, Message


class Conversation:
    """One person and one model, turn by turn."""

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None = None, layout: Layout = "v3"
    ):
        self.llm, self.params, self.layout = llm, params, layout
        self.system = system
        self.turns: list[Message] = []  # user and assistant in turn, without the system message
        self.num_dropped = 0  # messages the latest question pushed out

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns = []

    def ask(self, text: str) -> Iterator[Delta]:
        """The answer to one more user message; if reading stops early, what was read of it is kept.

        Raises:
            RequestError: even alone, the message is longer than the model can read.
        """
        self.turns.append(Message("user", text))
        self._make_room()
        try:
            deltas = self.llm.stream(self._messages(), self.params, layout=self.layout)
        except RequestError:
            self.turns.pop()
            raise
        return self._remember(deltas)

    def _messages(self) -> list[Message]:
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.turns]

    def _make_room(self) -> None:
        """Drop the oldest turns until half the context, or what the answer may need, is free."""
        context = self.llm.config.max_position_embeddings
        room = context - min(self.params.max_tokens, context // 2)
        before = len(self.turns)
        while len(self.turns) > 1 and self.llm.count_tokens(self._messages(), self.layout) > room:
            del self.turns[0]
            while self.turns[0].role != "user":  # its answer, unless nobody read one
                del self.turns[0]
        self.num_dropped = before - len(self.turns)

    def _remember(self, deltas: Iterator[Delta]) -> Iterator[Delta]:
        text = ""
        try:
            for delta in deltas:
                text += delta.text
                yield delta
        finally:
            self.turns.append(Message("assistant", text))
