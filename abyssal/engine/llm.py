"""LLM: a model and its tokenizer, ready to continue text, answer chats and score tokens.

Calls may come from several threads. All share one engine: whoever waits for an answer drives a pass
for everybody. What a request writes depends on its prompt, its sampling values and its seed, and
not on the requests beside it (up to rounding, in float32 far below what a draw would notice; to the
bit with `EngineOptions(deterministic=True)`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, Unpack, overload

import torch

from abyssal.collector import paused
from abyssal.config import ModelConfig
from abyssal.engine import scoring
from abyssal.engine.engine import Engine, EngineOptions, runs_natively
from abyssal.engine.native import stack_of
from abyssal.engine.prompts import Prompts
from abyssal.engine.request import Completion, Delta, Request, SamplingChanges, SamplingParams
from abyssal.engine.shared import SharedEngine
from abyssal.errors import ConfigError, RequestError
from abyssal.kernels.stack import Stack
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.message import Message
from abyssal.tokenizer.template import Layout

if TYPE_CHECKING:  # a first token needs neither
    from abyssal.model.transformer import DeepSeekV3
    from abyssal.tokenizer.tools import Tool

SMALL_BYTES = 2**30  # BF16 weights below this are widened to float32 where torch runs them


class LLM:
    """A model that can be talked to: a model folder, or a model and its tokenizer.

    Weights from a folder keep their saved precision: BF16, FP8, INT8 and INT4 are multiplied as
    they are stored. `dtype` recasts them. On a CPU a folder's weights are packed once, into a file
    beside them that later starts map (`engine/packed.py`). Where no native kernels are to be had,
    BF16 models below a GiB run in float32, which torch computes faster.

    Raises:
        CheckpointError, DataError: the folder lacks a model or a tokenizer.
    """

    def __init__(
        self,
        model: "DeepSeekV3 | str | Path",
        tokenizer: Tokenizer | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        options: EngineOptions | None = None,
    ):
        self._model: DeepSeekV3 | None = None
        self.folder: Path | None = None  # where the model was read from
        self._is_live = not isinstance(model, str | Path)  # who holds it may move its weights
        if not isinstance(model, str | Path):
            if tokenizer is None or dtype is not None or device is not None:
                raise ConfigError(
                    "an LLM around a loaded model needs its tokenizer and takes no dtype or "
                    "device; convert the model first"
                )
            self._model, self.tokenizer = model, tokenizer
            self.config = model.config
        else:
            self.folder, self._dtype = Path(model), dtype
            self._device = torch.device(device or "cpu")
            self.config = ModelConfig.load(model)
            self.tokenizer = tokenizer or Tokenizer.load(model)
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens and the model only "
                f"vocab_size={self.config.vocab_size}; use the tokenizer it was trained with"
            )
        options = options or EngineOptions()
        options.check(self.config)  # before a folder is packed
        with paused():  # every expert of every layer has a structure that stays
            self.engine = Engine(self._packed() or self.model, self.tokenizer, options)
        self._shared = SharedEngine(self.engine)
        self.prompts = Prompts(self.config, self.tokenizer, self.engine.compile)

    @property
    def model(self) -> "DeepSeekV3":
        """The model as a torch module; of a folder that runs natively, loaded when it is wanted."""
        if self._model is None:
            assert self.folder is not None, "there is a folder where there is no model"
            self._model = _load(self.folder, self._dtype, self._device)
        return self._model

    def _packed(self) -> Stack | None:
        """The folder's weights for native passes, if that is how they will be run."""
        if self.folder is None or not runs_natively(self._device):
            return None
        return stack_of(self.folder, self.config, self._dtype)

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
        prompt, then those of the second, and so on. Equal prompts and seeds give equal answers. One
        of many that fails on its way ends with finish_reason "error" and disturbs no other.

        Raises:
            RequestError: a prompt is longer than the model can read, a value is impossible, or the
            answer to a single text fails on its way.
        """
        params = _changed(params, changes)
        if isinstance(prompts, str):
            _check_single(params)
            requests = self.prompts.requests([self.prompts.read(prompts)], params)
            return _whole(self._complete(requests, progress)[0])
        read = [self.prompts.read(prompt) for prompt in prompts]
        return self._complete(self.prompts.requests(read, params), progress)

    def chat(
        self,
        messages: str | Message | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        layout: Layout = "v3",
        thinking: bool = False,
        tools: "Sequence[Tool]" = (),
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
        tokens = self.prompts.render(messages, layout, thinking, tools)
        requests = self.prompts.requests(
            [tokens], self.prompts.ending_at_user(params), layout=layout if tools else None
        )
        return _whole(self._complete(requests, progress=False)[0])

    def stream(
        self,
        prompt: str | list[int] | Message | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        layout: Layout = "v3",
        thinking: bool = False,
        tools: "Sequence[Tool]" = (),
        **changes: Unpack[SamplingChanges],
    ) -> Iterator[Delta]:
        """The same answer token by token: a text or tokens are continued, messages are answered."""
        params = _changed(params, changes)
        _check_single(params)
        if isinstance(prompt, Message) or _are_messages(prompt):
            tokens = self.prompts.render(prompt, layout, thinking, tools)
            params = self.prompts.ending_at_user(params)
        else:
            tokens = self.prompts.read(prompt)
        called = layout if tools else None
        return self._shared.deltas(self.prompts.requests([tokens], params, layout=called))

    def complete(self, requests: list[Request]) -> list[Completion]:
        """The answers to requests that `prompts.requests` made, each with values of its own."""
        return self._complete(requests, progress=False)

    def refresh(self) -> None:
        """Take over the weights of the model this was made of, after somebody has moved them.

        Answers are then those of a new LLM around it, to the bit; no second model is held.

        Raises:
            ConfigError: it was made of a folder.
            RequestError: answers are under way.
        """
        if not self._is_live:
            raise ConfigError("an LLM of a folder has weights of its own; make one of a model")
        with self._shared.lock:
            if not self.engine.is_idle:
                raise RequestError("answers are under way; refresh between them")
            self.engine.refresh(self.model)

    def score(self, token_lists: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token given those before it: n - 1 numbers for n tokens."""
        with self._shared.lock:
            return scoring.logprobs(self.model, token_lists)

    def count_tokens(
        self, messages: Sequence[Message], layout: Layout = "v3", thinking: bool = False
    ) -> int:
        """Tokens a conversation takes up before its answer."""
        from abyssal.tokenizer.chat import render  # only for conversations

        return len(render(messages, self.tokenizer, layout, thinking).tokens)

    def _complete(self, requests: list[Request], progress: bool) -> list[Completion]:
        deltas: dict[int, list[Delta]] = {request.id: [] for request in requests}
        for delta in self._told(requests) if progress else self._shared.deltas(requests):
            deltas[delta.request_id].append(delta)
        return [Completion.from_deltas(request, deltas[request.id]) for request in requests]

    def _told(self, requests: list[Request]) -> Iterator[Delta]:
        """The same with a progress bar on standard error."""
        from rich.console import Console  # only for those who look: a tenth of the start
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("generating", total=len(requests))
            for delta in self._shared.deltas(requests):
                yield delta
                if delta.finish_reason:
                    bar.advance(task)


def _load(folder: str | Path, dtype: torch.dtype | None, device: torch.device) -> "DeepSeekV3":
    from abyssal.model.transformer import DeepSeekV3  # native passes need none

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


def _whole(completion: Completion) -> Completion:
    """The answer, unless it was ended by an error."""
    if completion.error is not None:
        raise RequestError(completion.error)
    return completion


def _are_messages(prompt: object) -> TypeGuard[Sequence[Message]]:
    return isinstance(prompt, Sequence) and any(isinstance(turn, Message) for turn in prompt)
