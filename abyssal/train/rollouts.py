"""Groups of answers drawn on the engine from the weights being trained, and what drew them.

The engine lives in this process. After an optimizer step its packed copy is refreshed in place from
the training model: there is no second model. An answer's random numbers are functions of the seed,
the draw, the question and which of its answers it is, so a resumed run draws what it would have.

    Q questions    G answers to each
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from abyssal.batch import Batch
from abyssal.engine.llm import LLM
from abyssal.engine.options import EngineOptions
from abyssal.engine.request import Completion, Request, SamplingParams
from abyssal.engine.routes import routes
from abyssal.errors import RequestError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.control import END_THINK


class Answer(NamedTuple):
    """One answer: its tokens behind those of its prompt."""

    prompt: list[int]
    tokens: list[int]  # the end token included, where it came to its end
    logprobs: list[float]  # of each, by the engine, at the temperature it was drawn with
    text: str  # behind the thought, where it has one
    is_whole: bool  # it ended by itself
    thought: str | None = None  # of a chat, "" if asked for none; None: it was never closed

    @property
    def shown(self) -> str:
        """All of it, to be read."""
        return self.text if self.thought is None else f"<think>{self.thought}</think>{self.text}"


class Rollouts:
    """An engine over the live model."""

    def __init__(
        self,
        model: DeepSeekV3,
        tokenizer: Tokenizer,
        *,
        running: int,
        draft: int = 0,
        deterministic: bool = True,
    ):
        """`running` answers are under way at once."""
        options = EngineOptions(
            max_running=running,
            max_step_tokens=max(2048, running),
            draft=draft,
            deterministic=deterministic,
        )
        self.tokenizer = tokenizer
        self.llm = LLM(model, tokenizer, options=options)
        self._drafted = self._right = 0

    def refresh(self) -> None:
        """Take over what an optimizer step has made of the weights."""
        self.llm.refresh()

    def draw(
        self, prompts: Sequence[str | list[int]], params: SamplingParams, key: Sequence[int]
    ) -> list[list[Answer]]:
        """params.n answers to each of Q prompts, texts or tokens, by random numbers of `key`."""
        requests = []
        for number, prompt in enumerate(prompts):
            tokens = self.llm.prompts.read(prompt)
            requests += self.llm.prompts.requests([tokens], _seeded(params, (*key, number)))
        done = self.llm.complete(requests)
        for one in done:
            if one.error is not None:
                raise RequestError(f"an answer failed inside the engine: {one.error}")
        answers = [self._answer(*pair) for pair in zip(requests, done, strict=True)]
        return [answers[i : i + params.n] for i in range(0, len(answers), params.n)]

    def _answer(self, request: Request, done: Completion) -> Answer:
        text, thought, closed = done.text, done.reasoning, self.tokenizer.control(END_THINK)
        if request.tokens[-1] == closed and closed not in done.tokens and not thought:
            thought = ""
        elif thought is not None and done.tokens.count(closed) != 1:
            text, thought = f"{thought}{text}", None
        is_whole = done.finish_reason == "stop"
        return Answer(request.tokens, done.tokens, done.logprobs or [], text, is_whole, thought)

    def accepted(self) -> float | None:
        """The share of the MTP module's guesses that were right since the last call; None: none."""
        stats = self.llm.engine.stats()
        drafted, right = sum(stats.drafted), sum(stats.accepted)
        before = self._drafted, self._right
        self._drafted, self._right = drafted, right
        guesses = drafted - before[0]
        return (right - before[1]) / guesses if guesses else None


def _seeded(params: SamplingParams, key: Sequence[int]) -> SamplingParams:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return replace(params, seed=int(state[0]) >> 1)


class Gap(NamedTuple):
    """How far the trainer's log-probabilities of what was drawn are from the engine's."""

    mean: float  # of |difference|, nats
    most: float
    k3: float  # estimate of KL(engine || trainer), nats a token


def gap(trainer: Tensor, engine: Tensor) -> Gap:
    """Of log-probabilities (T,) of the same tokens, the engine's those they were drawn with."""
    difference = (trainer - engine).double()
    if not len(difference):
        return Gap(0.0, 0.0, 0.0)
    k3 = difference.exp() - difference - 1
    away = difference.abs()
    return Gap(away.mean().item(), away.max().item(), k3.mean().item())


@torch.no_grad()
def routing_disagreement(rollouts: Rollouts, model: DeepSeekV3, answer: Answer) -> float:
    """The share of (token, layer) whose experts differ between engine and trainer.

    Measured on one answer and its prompt: the engine reads it token by token, as it wrote it; the
    trainer reads it whole, in its own kernels and precision.
    """
    tokens = [*answer.prompt, *answer.tokens]
    met = routes(rollouts.llm.engine.runner, tokens)  # (T, M, E)
    if not met.shape[1]:
        return 0.0
    device = model.lm_head.weight.device
    found = model(Batch.from_sequences([tokens]).to(device)).routings
    theirs = torch.zeros_like(met)
    for layer, routing in enumerate(found):
        theirs[:, layer].scatter_(1, routing.experts.cpu(), True)
    return (met != theirs).any(-1).double().mean().item()
