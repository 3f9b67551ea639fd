"""The extension field `insight` of chat replies: how an answer came about, by token and in sum.

A token's experts are those of the row whose scores it was drawn from; `engine/request.py` has the
definition. The sum counts what the engine did for the answer, the mark of its end included, so over
all answers it adds up to what /metrics tells.
"""

from typing import Any

from abyssal.engine.llm import LLM
from abyssal.engine.pages import PAGE, pages_for
from abyssal.engine.request import Delta, Insight, Request
from abyssal.serve.metrics import Stopwatch


class AnswerInsight:
    """What is told of one answer; its deltas are noted as they come."""

    def __init__(self, request: Request, llm: LLM, stopwatch: Stopwatch):
        self._request, self._llm, self._stopwatch = request, llm, stopwatch
        self._waiting: list[dict[str, Any]] = []  # tokens not told yet
        self._latest: Insight | None = None
        self._num_tokens = self._num_cached = 0

    def note(self, delta: Delta, *, is_shown: bool) -> None:
        """Take in a delta; is_shown if its token is one and belongs to the answer."""
        self._num_cached = delta.cached_tokens
        if delta.insight is None:
            return
        self._latest = delta.insight
        self._num_tokens += 1
        if is_shown:
            told = {"experts": delta.insight.experts, "drafted": delta.insight.is_draft}
            self._waiting.append(told)

    def take(self) -> dict[str, Any] | None:
        """The tokens since the last time, if there are any."""
        if not self._waiting:
            return None
        tokens, self._waiting = self._waiting, []
        return {"tokens": tokens}

    def last(self) -> dict[str, Any]:
        """The rest of the tokens, and the sum."""
        return {**(self.take() or {"tokens": []}), "summary": self._summary()}

    def _summary(self) -> dict[str, Any]:
        """Bytes are those of the cache that the engine has; times are as the reader sees them.

        Times that nothing gives, such as a rate of a single token, are None.
        """
        config, cache = self._llm.config, self._llm.engine.runner.cache
        prompt, latest = len(self._request.tokens), self._latest
        read = prompt + max(self._num_tokens - 1, 0)  # the last token is never read
        began_s, ended_s = self._stopwatch.times_s(self._request.id)
        rate = None
        if began_s is not None and ended_s is not None and ended_s > began_s:
            rate = round((self._num_tokens - 1) / (ended_s - began_s), 3)
        layers = range(config.num_hidden_layers)
        return {
            "prompt_tokens": prompt,
            "cached_tokens": self._num_cached,
            "latent_bytes_per_token": cache.bytes_per_token,
            "full_attention_bytes_per_token": cache.unfolded_bytes_per_token,
            "cache_bytes": pages_for(read) * PAGE * cache.bytes_per_token,
            "moe_layers": [layer for layer in layers if config.is_moe(layer)],
            "n_routed_experts": config.n_routed_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "drafted": latest.drafted if latest else 0,
            "accepted": latest.accepted if latest else 0,
            "time_to_first_token_s": None if began_s is None else round(began_s, 6),
            "tokens_per_s": rate,
        }
