"""What the reader of a text completion gets: chunks while it is written, or the whole of it."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from abyssal.engine.llm import LLM
from abyssal.engine.request import Delta, Request, TopLogprobs
from abyssal.serve.chat_reply import finish_reason
from abyssal.serve.logprobs import TextLogprobs, joined
from abyssal.serve.schema import CompletionRequest
from abyssal.serve.stream import Occasion
from abyssal.serve.usage import Tally

_Scores = dict[int | None, tuple[tuple[float, TopLogprobs], ...]]  # of prompts, by their group


class CompletionReply:
    """The replies to one completion: n choices of its first prompt, n of the second, ..."""

    def __init__(
        self,
        body: CompletionRequest,
        requests: Sequence[Request],
        llm: LLM,
        occasion: Occasion,
    ):
        self._body = body
        self._dialect = occasion.dialect
        self._head = {
            "id": f"cmpl-{occasion.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": occasion.fingerprint,
        }
        self._wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._num_left = len(requests)
        n = body.n or 1
        self._choices = {
            request.id: _Choice(i, request, body.prompt[i // n], llm, body)
            for i, request in enumerate(requests)
        }
        self._scores: _Scores = {}
        self.tally = Tally(requests, llm.tokenizer)

    def opening(self) -> Iterator[dict[str, Any]]:
        """Nothing comes before the text."""
        return iter(())

    def chunks(self, deltas: Sequence[Delta]) -> Iterator[dict[str, Any]]:
        """What these deltas add; neighbors of one choice share a chunk."""
        run: list[Delta] = []
        for delta in deltas:
            if run and (run[0].request_id != delta.request_id or run[-1].finish_reason):
                yield from self._chunk(run)
                run = []
            run.append(delta)
        if run:
            yield from self._chunk(run)

    def closing(self) -> Iterator[dict[str, Any]]:
        """What follows when all choices have ended."""
        if self._wants_usage and self._dialect == "openai":
            yield {**self._head, "choices": [], "usage": self.tally.to_dict()}

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The reply that is not streamed."""
        mine: dict[int, list[Delta]] = {request_id: [] for request_id in self._choices}
        for delta in deltas:
            mine[delta.request_id].append(delta)
        choices = [self._shown(self._choices[i], one) for i, one in mine.items()]
        return {**self._head, "choices": choices, "usage": self.tally.to_dict()}

    def _chunk(self, run: Sequence[Delta]) -> Iterator[dict[str, Any]]:
        choice = self._choices[run[0].request_id]
        shown = self._shown(choice, run)
        logprobs = shown["logprobs"]
        if not shown["text"] and not shown["finish_reason"] and not (logprobs or {}).get("tokens"):
            return
        chunk = {**self._head, "choices": [shown]}
        if shown["finish_reason"]:
            self._num_left -= 1
            if self._dialect == "deepseek" and not self._num_left:
                yield {**chunk, "usage": self.tally.to_dict()}
                return
        yield {**chunk, "usage": None} if self._wants_usage else chunk

    def _shown(self, choice: "_Choice", deltas: Sequence[Delta]) -> dict[str, Any]:
        """A choice, or what deltas add to it."""
        for delta in deltas:
            self.tally.count(delta)
            if delta.prompt_logprobs is not None:
                self._scores[choice.request.group] = delta.prompt_logprobs
        # A thought is text like any other where no chat was asked for.
        text = "".join(delta.reasoning + delta.text for delta in deltas)
        text, echoed = choice.take_echo() + text, choice.take_scores(self._scores)
        logprobs = choice.scores.answer(deltas) if choice.scores else None
        if logprobs is not None and echoed is not None:
            logprobs = joined(echoed, logprobs)
        reason = deltas[-1].finish_reason
        return {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason and finish_reason(reason, self._dialect),
        }


class _Choice:
    """One text of a reply."""

    def __init__(
        self,
        index: int,
        request: Request,
        prompt: str | list[int],
        llm: LLM,
        body: CompletionRequest,
    ):
        self.index, self.request = index, request
        self.scores = None if body.logprobs is None else TextLogprobs(llm.tokenizer)
        self._echo = ""  # the prompt, until it is told
        self._owes_scores = bool(body.echo and self.scores)
        if body.echo:
            self._echo = prompt if isinstance(prompt, str) else llm.tokenizer.decode(prompt)

    def take_echo(self) -> str:
        """The prompt, once."""
        echo, self._echo = self._echo, ""
        return echo

    def take_scores(self, found: "_Scores") -> dict[str, Any] | None:
        """The prompt's entries, once; n answers find them with the first of their group."""
        if not self._owes_scores or self.scores is None:
            return None
        self._owes_scores = False
        return self.scores.prompt(self.request.tokens, found[self.request.group])
