"""LLM: a model and its tokenizer, ready to continue text, answer chats and score tokens.

Calls may come from several threads. All share one engine: whoever waits for an answer drives a pass
for everybody. What a request writes depends on its prompt, its sampling values and its seed, and
not on the requests beside it (up to rounding, in float32 far below what a draw would notice; to the
bit with `EngineOptions(deterministic=True)`).
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeGuard, Unpack, overload

import torch
from rich.console import Console
from rich.progress import Progress

from abyssal.engine import scoring
from abyssal.engine.engine import Engine, EngineOptions
from abyssal.engine.request import Completion, Delta, Request, SamplingChanges, SamplingParams
from abyssal.errors import ConfigError, DataError, RequestError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import END_THINK, THINK, USER, Tokenizer
from abyssal.tokenizer.chat import Layout, Message, render
from abyssal.tokenizer.tools import Tool

SMALL_BYTES = 2**30  # BF16 weights below this are widened to float32 on a CPU


class LLM:
    """A model that can be talked to: a model folder, or a model and its tokenizer.

    Weights from a folder keep their saved precision, except small ones on a CPU, which run in
    float32: the tiny preset decodes twice as fast so as in BF16 (290 against 150 tokens/s, one core
    with AMX), for a step so small is call overhead. `dtype` decides otherwise.

    Raises:
        CheckpointError, DataError: the folder lacks a model or a tokenizer.
    """

    def __init__(
        self,
        model: DeepSeekV3 | str | Path,
        tokenizer: Tokenizer | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        options: EngineOptions | None = None,
    ):
        if isinstance(model, DeepSeekV3):
            if tokenizer is None or dtype is not None or device is not None:
                raise ConfigError(
                    "an LLM around a loaded model needs its tokenizer and takes no dtype or "
                    "device; convert the model first"
                )
            self.model, self.tokenizer = model, tokenizer
        else:
            self.model = _load(model, dtype, torch.device(device or "cpu"))
            self.tokenizer = tokenizer or Tokenizer.load(model)
        self.config = self.model.config
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens and the model only "
                f"vocab_size={self.config.vocab_size}; use the tokenizer it was trained with"
            )
        self._think = _think_tokens(self.tokenizer)
        self._ids = count()
        self._lock = threading.Lock()  # whoever holds it drives the engine
        self._boxes: dict[int, deque[Delta]] = {}  # by request: where its call collects deltas
        self._given_up: deque[int] = deque()  # requests nobody reads any more
        self.engine = Engine(self.model, self.tokenizer, options)

    @overload
    def generate(
        self,
        prompts: str,
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
        **changes: Unpack[SamplingChanges],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompts: list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
        **changes: Unpack[SamplingChanges],
    ) -> list[Completion]: ...

    def generate(
        self,
        prompts: str | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        progress: bool = False,
        **changes: Unpack[SamplingChanges],
    ) -> Completion | list[Completion]:
        """Continue one text, or many prompts together; `changes` are fields of SamplingParams.

        A text is read after BOS; a list of tokens as it is. A list gives the n answers of the first
        prompt, then those of the second, and so on. Equal prompts and seeds give equal answers.

        Raises:
            RequestError: a prompt is longer than the model can read, or a value is impossible.
        """
        params = _changed(params, changes)
        if isinstance(prompts, str):
            _check_single(params)
            return self._complete(self.requests([self.read(prompts)], params), progress)[0]
        read = [self.read(prompt) for prompt in prompts]
        return self._complete(self.requests(read, params), progress)

    def chat(
        self,
        messages: str | Message | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        layout: Layout = "v3",
        thinking: bool = False,
        tools: Sequence[Tool] = (),
        **changes: Unpack[SamplingChanges],
    ) -> Completion:
        """The assistant's answer to a conversation; a text is one user message. Nothing is cut off.

        With tools, the calls it makes are recognized in the layout's form.

        Raises:
            RequestError: the conversation is longer than the model can read.
            DataError: the conversation or the layout is impossible.
        """
        params = _changed(params, changes)
        _check_single(params)
        tokens = self.render(messages, layout, thinking, tools)
        requests = self.requests(
            [tokens], self.ending_at_user(params), layout=layout if tools else None
        )
        return self._complete(requests, progress=False)[0]

    def stream(
        self,
        prompt: str | list[int] | Message | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        layout: Layout = "v3",
        thinking: bool = False,
        tools: Sequence[Tool] = (),
        **changes: Unpack[SamplingChanges],
    ) -> Iterator[Delta]:
        """The same answer token by token: a text or tokens are continued, messages are answered."""
        params = _changed(params, changes)
        _check_single(params)
        if isinstance(prompt, Message) or _are_messages(prompt):
            tokens = self.render(prompt, layout, thinking, tools)
            params = self.ending_at_user(params)
        else:
            tokens = self.read(prompt)
        return self._deltas(self.requests([tokens], params, layout=layout if tools else None))

    def score(self, token_lists: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it: n - 1 numbers for n tokens."""
        with self._lock:
            return scoring.logprobs(self.model, token_lists)

    def count_tokens(
        self, messages: Sequence[Message], layout: Layout = "v3", thinking: bool = False
    ) -> int:
        """Tokens a conversation takes up before its answer."""
        return len(render(messages, self.tokenizer, layout, thinking).tokens)

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
        tools: Sequence[Tool] = (),
    ) -> list[int]:
        """The tokens of a conversation, checked against the context.

        Raises:
            RequestError: it is too long.
            DataError: the conversation or the layout is impossible.
        """
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
        matcher = None if params.grammar is None else self.engine.compile(params.grammar)
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

    def _complete(self, requests: list[Request], progress: bool) -> list[Completion]:
        deltas: dict[int, list[Delta]] = {request.id: [] for request in requests}
        with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
            task = bar.add_task("generating", total=len(requests))
            for delta in self._deltas(requests):
                deltas[delta.request_id].append(delta)
                if delta.finish_reason:
                    bar.advance(task)
        return [Completion.from_deltas(request, deltas[request.id]) for request in requests]

    def _deltas(self, requests: list[Request]) -> Iterator[Delta]:
        """Run requests to their ends; who stops reading early gives them up."""
        box: deque[Delta] = deque()
        going = {request.id for request in requests}
        try:
            with self._lock:
                for request in requests:
                    self._boxes[request.id] = box
                    self.engine.add(request)
            while going:
                with self._lock:
                    while not box:  # another thread may have filled it meanwhile
                        self._drive()
                while box:
                    delta = box.popleft()
                    if delta.finish_reason:
                        going.discard(delta.request_id)
                        del self._boxes[delta.request_id]
                    yield delta
        finally:
            # Perhaps the garbage collector is closing us in the middle of somebody's pass.
            self._given_up.extend(going)

    def _drive(self) -> None:
        """One pass for everybody, each delta into its call's box."""
        while self._given_up:
            request_id = self._given_up.popleft()
            self.engine.abort(request_id)
            self._boxes.pop(request_id, None)
        for delta in self.engine.step():
            self._boxes[delta.request_id].append(delta)

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


def _load(folder: str | Path, dtype: torch.dtype | None, device: torch.device) -> DeepSeekV3:
    model = DeepSeekV3.load(folder)
    size = sum(parameter.nbytes for parameter in model.parameters())
    if dtype is None and device.type == "cpu" and size < SMALL_BYTES:
        dtype = torch.float32
    if dtype is not None:
        for parameter in model.parameters():  # not the gates' biases, which stay in float32
            parameter.data = parameter.data.to(dtype)
    return model.to(device).requires_grad_(False)


def _changed(params: SamplingParams | None, changes: SamplingChanges) -> SamplingParams:
    return replace(params or SamplingParams(), **changes)


def _check_single(params: SamplingParams) -> None:
    if params.n != 1:
        raise RequestError(
            f"n={params.n} answers to a single prompt; call generate with a list of prompts"
        )


def _is_tokens(prompt: object) -> TypeGuard[list[int]]:
    return isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)


def _are_messages(prompt: object) -> TypeGuard[Sequence[Message]]:
    return isinstance(prompt, Sequence) and any(isinstance(turn, Message) for turn in prompt)


def _think_tokens(tokenizer: Tokenizer) -> tuple[int, int] | None:
    try:
        return tokenizer.control(THINK), tokenizer.control(END_THINK)
    except DataError:
        return None  # the first release of V3 has neither
