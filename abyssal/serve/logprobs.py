"""Log-probabilities as the two APIs show them: chats token by token, texts in parallel lists.

A token that is not whole characters has no text; it is written ``bytes:\\xe6\\xb7``, so that two of
them never look alike.
"""

from collections.abc import Sequence
from typing import Any

from abyssal.engine.request import MAX_LOGPROBS, Delta, TopLogprobs
from abyssal.tokenizer.bpe import TextStream, Tokenizer

# Both APIs' word for a token outside the MAX_LOGPROBS most likely ones; JSON has no infinity.
UNLIKELY = -9999.0


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """How a token is written in a reply; a control token by its name."""
    spelled = tokenizer.decode_bytes([token], skip_control=False)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def chat_entry(tokenizer: Tokenizer, delta: Delta, shown: int) -> dict[str, Any]:
    """A token of an answer with its `shown` alternatives; the engine was asked for MAX_LOGPROBS."""
    assert delta.token is not None, "only tokens have entries"
    assert delta.logprob is not None, "the engine was asked for it"
    is_likely = any(token == delta.token for token, _ in delta.top_logprobs[:MAX_LOGPROBS])
    logprob = delta.logprob if is_likely else UNLIKELY
    entry = _entry(tokenizer, delta.token, logprob)
    entry["top_logprobs"] = [_entry(tokenizer, *one) for one in delta.top_logprobs[:shown]]
    return entry


class TextLogprobs:
    """The logprobs object of one text completion, piece by piece."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer)
        self._offset = 0  # characters of the text so far

    def prompt(
        self, tokens: Sequence[int], scores: Sequence[tuple[float, TopLogprobs]]
    ) -> dict[str, Any]:
        """The entries of an echoed prompt; nothing comes before its first token to expect it by."""
        found = self._empty()
        self._append(found, tokens[0], None, ())
        for token, (logprob, top) in zip(tokens[1:], scores, strict=True):
            self._append(found, token, logprob, top)
        return found

    def answer(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The entries of tokens written."""
        found = self._empty()
        for delta in deltas:
            if delta.token is not None:
                self._append(found, delta.token, delta.logprob, delta.top_logprobs)
        return found

    def _empty(self) -> dict[str, Any]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def _append(
        self, found: dict[str, Any], token: int, logprob: float | None, top: TopLogprobs
    ) -> None:
        name = token_text(self._tokenizer, token)
        found["tokens"].append(name)
        found["token_logprobs"].append(None if logprob is None else max(logprob, UNLIKELY))
        found["top_logprobs"].append(None if logprob is None else self._top(name, logprob, top))
        found["text_offset"].append(self._offset)
        self._offset += len(self._stream.push(token))

    def _top(self, name: str, logprob: float, top: TopLogprobs) -> dict[str, float]:
        """The most likely tokens, and the one drawn, as OpenAI has it."""
        shown = {token_text(self._tokenizer, one): max(score, UNLIKELY) for one, score in top}
        return {**shown, name: max(logprob, UNLIKELY)}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two pieces of one logprobs object of a text."""
    return {name: first[name] + second[name] for name in first}


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token),
        "logprob": max(logprob, UNLIKELY),
        "bytes": list(tokenizer.decode_bytes([token], skip_control=False)),
    }
