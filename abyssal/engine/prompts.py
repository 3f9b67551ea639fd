"""What is asked of a model: texts, tokens and conversations made into requests, and checked.

No torch: everything that can be wrong with a prompt is found before the engine sees it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeGuard

from abyssal.config import ModelConfig
from abyssal.engine.request import Grammar, Matcher, Request, SamplingParams
from abyssal.errors import DataError, RequestError
from abyssal.tokenizer.bpe import END_THINK, THINK, USER, Tokenizer
from abyssal.tokenizer.message import Message
from abyssal.tokenizer.template import Layout

if TYPE_CHECKING:
    from abyssal.tokenizer.tools import Tool


class Prompts:
    """What a model with this vocabulary and context can be asked."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, compile: Callable[[Grammar], Matcher]
    ):
        self.config, self.tokenizer = config, tokenizer
        self._compile = compile
        self._think = _think_tokens(tokenizer)
        self._ids = count()

    def read(self, prompt: object) -> list[int]:
        """The tokens of a raw prompt, a text or tokens, checked against vocabulary and context.

        Raises:
            RequestError: it is neither, is empty or too long, or holds an unknown token.
        """
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt, bos=True)
        elif _is_tokens(prompt):
            tokens = list(prompt)
        else:
            raise RequestError(f"prompt={prompt!r:.60}, expected a text or a list of token ids")
        if not tokens:
            raise RequestError("the prompt has no tokens, expected at least one; begin with BOS")
        wrong = [token for token in tokens if not 0 <= token < self.config.vocab_size]
        if wrong:
            raise RequestError(
                f"token {wrong[0]} in the prompt, expected ids from 0 to "
                f"{self.config.vocab_size - 1}"
            )
        return self._fitting(tokens, "prompt", "shorten it")

    def render(
        self,
        messages: str | Message | Sequence[Message],
        layout: Layout = "v3",
        thinking: bool = False,
        tools: "Sequence[Tool]" = (),
    ) -> list[int]:
        """The tokens of a conversation, checked against the context.

        Raises:
            RequestError: it is too long.
            DataError: the conversation or the layout is impossible.
        """
        from abyssal.tokenizer.chat import render  # only for conversations

        if isinstance(messages, str):
            messages = Message("user", messages)
        if isinstance(messages, Message):
            messages = [messages]
        tokens = render(messages, self.tokenizer, layout, thinking, tools=tools).tokens
        return self._fitting(tokens, "conversation", "drop its oldest turns")

    def requests(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        thinking: bool | None = None,
        layout: Layout | None = None,
        owner: str = "",
        salt: bytes = b"",
        deadline_s: float | None = None,
    ) -> list[Request]:
        """n requests for each prompt, ids new, the grammar compiled; for the engine.

        `thinking` None reads off the prompt whether the answer opens inside <think>; `layout` is
        the one whose tool calls are recognized.

        Raises:
            RequestError: a token is unknown, or the grammar cannot be compiled.
        """
        self._check_tokens(params)
        matcher = None if params.grammar is None else self._compile(params.grammar)
        silent = replace(params, prompt_logprobs=None, max_tokens=max(params.max_tokens, 1))
        made = []
        for tokens in prompts:
            first = next(self._ids)
            thinks = self._is_thinking(tokens) if thinking is None else thinking
            for sample in range(params.n):
                made.append(
                    Request(
                        id=first if sample == 0 else next(self._ids),
                        tokens=tokens,
                        params=params if sample == 0 else silent,
                        sample=sample,
                        thinking=thinks,
                        layout=layout,
                        group=first,
                        owner=owner,
                        salt=salt,
                        deadline_s=deadline_s,
                        matcher=matcher,
                    )
                )
        return made

    def ending_at_user(self, params: SamplingParams) -> SamplingParams:
        """An answer also ends where the model would write the user's next turn."""
        ends = (*params.stop_token_ids, self.tokenizer.control(USER))
        return replace(params, stop_token_ids=ends)

    def _check_tokens(self, params: SamplingParams) -> None:
        known = self.tokenizer.vocab_size
        for token in (*params.stop_token_ids, *params.logit_bias):
            if token >= known:
                raise RequestError(f"token {token} in the request, expected ids below {known}")

    def _fitting(self, tokens: list[int], what: str, remedy: str) -> list[int]:
        context = self.config.max_position_embeddings
        if len(tokens) > context - 1:
            raise RequestError(
                f"the {what} has {len(tokens)} tokens, but the model reads at most {context - 1} "
                f"before it writes one (max_position_embeddings={context}); {remedy}"
            )
        return tokens

    def _is_thinking(self, tokens: list[int]) -> bool:
        """Whether a prompt ends inside <think>: only a chat layout can have opened it."""
        marks = [token for token in tokens if self._think and token in self._think]
        return bool(marks) and self._think is not None and marks[-1] == self._think[0]


def _is_tokens(prompt: object) -> TypeGuard[list[int]]:
    return isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)


def _think_tokens(tokenizer: Tokenizer) -> tuple[int, int] | None:
    try:
        return tokenizer.control(THINK), tokenizer.control(END_THINK)
    except DataError:
        return None  # the first release of V3 has neither
