"""How many tokens a call took, in both services' words."""

from collections.abc import Sequence
from typing import Any

from abyssal.engine.request import Delta, Request
from abyssal.tokenizer.bpe import END_THINK, THINK, Tokenizer


class Tally:
    """Counts the tokens of a call's answers as they come, and knows who is thinking."""

    def __init__(self, requests: Sequence[Request], tokenizer: Tokenizer):
        self.completion_tokens = 0
        self.reasoning_tokens = 0  # of them, up to and with </think>
        self._groups = {r.id: r.id if r.group is None else r.group for r in requests}
        self._prompts = {self._groups[r.id]: len(r.tokens) for r in requests}
        self._cached = dict.fromkeys(self._prompts, 0)
        self._heads = {r.id for r in requests if r.sample == 0}
        self._thinking = {r.id for r in requests if r.thinking}
        names = {tokenizer.decode([i], skip_control=False): i for i in tokenizer.control_ids}
        self._opens, self._closes = names.get(THINK), names.get(END_THINK)

    def count(self, delta: Delta) -> bool:
        """Take in a delta; whether its token belongs to a thought."""
        if delta.request_id in self._heads:
            self._cached[self._groups[delta.request_id]] = delta.cached_tokens
        if delta.token is None:
            return False
        self.completion_tokens += 1
        if delta.token == self._opens:
            self._thinking.add(delta.request_id)
        thinks = delta.request_id in self._thinking
        self.reasoning_tokens += thinks
        if delta.token == self._closes:
            self._thinking.discard(delta.request_id)
        return thinks

    def to_dict(self) -> dict[str, Any]:
        """The usage object; a prompt that n answers share counts once."""
        prompt, cached = sum(self._prompts.values()), sum(self._cached.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "prompt_cache_hit_tokens": cached,
            "prompt_cache_miss_tokens": prompt - cached,
        }
