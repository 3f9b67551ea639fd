"""What a chat's reader gets: chunks while it is written, or the whole of it.

    role                          first chunk of every answer
    reasoning_content             thoughts, before anything else
    content, tool_calls           the answer
    finish_reason                 last chunk; at DeepSeek with usage on it
    insight                       beside them, with the tokens since the last chunk, if asked for

OpenAI's usage comes in a chunk of its own, if asked for. The two dialects differ in nothing else.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from abyssal.engine.llm import LLM
from abyssal.engine.request import Delta, FinishReason, Request
from abyssal.serve.faults import Dialect
from abyssal.serve.insight import AnswerInsight
from abyssal.serve.logprobs import chat_entry
from abyssal.serve.schema import ChatRequest
from abyssal.serve.stream import Occasion
from abyssal.serve.usage import Tally
from abyssal.tokenizer.calls import CallPiece, join_calls


def finish_reason(reason: FinishReason, dialect: Dialect, *, has_calls: bool = False) -> str:
    """Why an answer ended, in the words of the API; OpenAI has none for a time limit but length."""
    if reason == "deadline":
        return "insufficient_system_resource" if dialect == "deepseek" else "length"
    return "tool_calls" if has_calls and reason == "stop" else reason


class ChatReply:
    """The replies to one chat request."""

    def __init__(
        self,
        body: ChatRequest,
        requests: Sequence[Request],
        llm: LLM,
        occasion: Occasion,
    ):
        self._body = body
        self._requests = list(requests)
        self._tokenizer = llm.tokenizer
        self._dialect = occasion.dialect
        self._head = {
            "id": f"chatcmpl-{occasion.id}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": occasion.fingerprint,
        }
        self._wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._num_left = len(requests)
        self._choices = {request.id: _Choice(i, request) for i, request in enumerate(requests)}
        if body.insight:
            for choice in self._choices.values():
                choice.insight = AnswerInsight(choice.request, llm, occasion.stopwatch)
        self.tally = Tally(requests, llm.tokenizer)

    def opening(self) -> Iterator[dict[str, Any]]:
        """The first chunk of every choice."""
        for choice in self._choices.values():
            fields: dict[str, Any] = {"role": "assistant", "content": ""}
            if choice.request.thinking:
                fields["reasoning_content"] = ""
                fields["content"] = None if self._dialect == "deepseek" else ""
            yield self._chunk(choice, fields)

    def chunks(self, deltas: Sequence[Delta]) -> Iterator[dict[str, Any]]:
        """What these deltas add; neighbors of one choice and kind share a chunk."""
        pending: tuple[_Choice, str, list[Any]] | None = None
        for delta in deltas:
            choice = self._choices[delta.request_id]
            self._note(choice, delta)
            for kind, value in _parts(delta):
                if pending and pending[0] is choice and pending[1] == kind:
                    pending[2].append(value)
                    continue
                if pending:
                    yield self._part(*pending)
                pending = choice, kind, [value]
            if delta.finish_reason is not None:
                if pending:
                    yield self._part(*pending)
                pending = None
                yield self._last(choice, delta.finish_reason)
        if pending:
            yield self._part(*pending)

    def closing(self) -> Iterator[dict[str, Any]]:
        """What follows when all choices have ended."""
        if self._wants_usage and self._dialect == "openai":
            yield {**self._head, "choices": [], "usage": self.tally.to_dict()}

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The reply that is not streamed."""
        mine: dict[int, list[Delta]] = {request.id: [] for request in self._requests}
        for delta in deltas:
            mine[delta.request_id].append(delta)
            self._note(self._choices[delta.request_id], delta)
        choices = [self._whole(choice, mine[i]) for i, choice in self._choices.items()]
        return {**self._head, "choices": choices, "usage": self.tally.to_dict()}

    def _note(self, choice: "_Choice", delta: Delta) -> None:
        """Count a delta, and keep what its token says for the next chunk of its choice."""
        thinks = self.tally.count(delta)
        choice.has_calls |= bool(delta.calls)
        is_shown = delta.token is not None and not self._is_end(choice, delta)
        if choice.insight is not None:
            choice.insight.note(delta, is_shown=is_shown)
        if self._body.logprobs and is_shown:
            entry = chat_entry(self._tokenizer, delta, self._body.top_logprobs or 0)
            choice.logprobs[thinks].append(entry)

    def _is_end(self, choice: "_Choice", delta: Delta) -> bool:
        """Whether the token is the mark of the end and not part of the answer."""
        ends = choice.request.params.stop_token_ids
        is_mark = delta.token in self._tokenizer.control_ids or delta.token in ends
        return delta.finish_reason == "stop" and is_mark

    def _part(self, choice: "_Choice", kind: str, values: list[Any]) -> dict[str, Any]:
        if kind == "tool_calls":
            return self._chunk(choice, {kind: choice.fragments(values)})
        fields: dict[str, Any] = {kind: "".join(values)}
        if self._dialect == "deepseek" and choice.request.thinking:
            fields["content" if kind == "reasoning_content" else "reasoning_content"] = None
        return self._chunk(choice, fields)

    def _last(self, choice: "_Choice", reason: FinishReason) -> dict[str, Any]:
        """The chunk that ends a choice."""
        self._num_left -= 1
        is_deepseek = self._dialect == "deepseek"
        chunk = self._chunk(choice, {"content": ""} if is_deepseek else {}, is_last=True)
        chunk["choices"][0]["finish_reason"] = finish_reason(
            reason, self._dialect, has_calls=choice.has_calls
        )
        if is_deepseek and not self._num_left:
            chunk["usage"] = self.tally.to_dict()
        return chunk

    def _chunk(
        self, choice: "_Choice", fields: dict[str, Any], *, is_last: bool = False
    ) -> dict[str, Any]:
        shown = {
            "index": choice.index,
            "delta": fields,
            "logprobs": choice.take_logprobs(),
            "finish_reason": None,
        }
        if choice.insight is not None:
            told = choice.insight.last() if is_last else choice.insight.take()
            if told:
                shown["insight"] = told
        chunk: dict[str, Any] = {**self._head, "choices": [shown]}
        if self._wants_usage:
            chunk["usage"] = None
        return chunk

    def _whole(self, choice: "_Choice", deltas: Sequence[Delta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        reasoning = "".join(delta.reasoning for delta in deltas)
        calls = join_calls(piece for delta in deltas for piece in delta.calls)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if self._dialect == "openai":
            message["refusal"] = None
        if reasoning or choice.request.thinking:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [
                _call(choice.call_id(i), call.name, call.arguments) for i, call in enumerate(calls)
            ]
        reason = deltas[-1].finish_reason
        assert reason is not None, "the answer is not finished"
        shown = {
            "index": choice.index,
            "message": message,
            "logprobs": choice.take_logprobs() if self._body.logprobs else None,
            "finish_reason": finish_reason(reason, self._dialect, has_calls=bool(calls)),
        }
        return shown if choice.insight is None else {**shown, "insight": choice.insight.last()}


class _Choice:
    """One answer of a reply."""

    def __init__(self, index: int, request: Request):
        self.index, self.request = index, request
        self.has_calls = False
        self.insight: AnswerInsight | None = None  # where it is asked for
        self.logprobs: tuple[list[Any], list[Any]] = ([], [])  # of the answer, of its thoughts
        self._call_ids: dict[int, str] = {}

    def take_logprobs(self) -> dict[str, Any] | None:
        """The entries since the last chunk."""
        answer, thoughts = self.logprobs
        if not answer and not thoughts:
            return None
        self.logprobs = ([], [])
        found: dict[str, Any] = {"content": answer, "refusal": None}
        return {**found, "reasoning_content": thoughts} if self.request.thinking else found

    def call_id(self, index: int) -> str:
        """The id of a call; ids are for the client alone, no model ever sees one."""
        return self._call_ids.setdefault(index, f"call_{secrets.token_hex(12)}")

    def fragments(self, pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
        """Pieces of calls as a chunk has them; the first of a call carries its id and name."""
        found: list[dict[str, Any]] = []
        for piece in pieces:
            if piece.name is not None:
                call = _call(self.call_id(piece.index), piece.name, piece.arguments)
                found.append({"index": piece.index, **call})
            elif found and found[-1]["index"] == piece.index:
                found[-1]["function"]["arguments"] += piece.arguments
            else:
                found.append({"index": piece.index, "function": {"arguments": piece.arguments}})
        return found


def _call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _parts(delta: Delta) -> Iterator[tuple[str, Any]]:
    """What a delta adds, in the order it was written."""
    if delta.reasoning:
        yield "reasoning_content", delta.reasoning
    if delta.text:
        yield "content", delta.text
    for piece in delta.calls:
        yield "tool_calls", piece
