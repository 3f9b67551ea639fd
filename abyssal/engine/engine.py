"""The engine: requests in, deltas out, one pass of the model over everyone at a time.

    plan -> copy pages -> pass -> draw -> text -> commit -> draft

The scheduler says who reads what, the runner computes it, the sampler draws, and each answer turns
its tokens into text. A fault of one request, in its grammar, its sampling values or its text, ends
that request alone.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abyssal.engine.answer import Answer
from abyssal.engine.memory import CachePlace
from abyssal.engine.native import NativeRunner, stack_of
from abyssal.engine.options import EngineOptions as EngineOptions
from abyssal.engine.options import Stats as Stats
from abyssal.engine.pages import PagePool
from abyssal.engine.request import Delta, Grammar, Matcher, Request, TopLogprobs
from abyssal.engine.runner import TILE, Runner, even_shares
from abyssal.engine.sampler import Row
from abyssal.engine.scheduler import Entry, Scheduler, Step
from abyssal.engine.scoring import given
from abyssal.engine.speculative import Drafter
from abyssal.engine.turn import Choice, Turn, draw
from abyssal.errors import AbyssalError
from abyssal.kernels import stack as native
from abyssal.kernels.stack import Stack
from abyssal.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:  # wait until they are asked for
    from abyssal.engine.grammar import Grammars
    from abyssal.model.transformer import DeepSeekV3

logger = logging.getLogger(__name__)


class Engine:
    """A model that serves many requests. One caller at a time, except of `compile`.

    On a CPU the model runs natively, on a packed copy of its weights, wherever native kernels are
    to be had; a `Stack` is such a copy already.
    """

    def __init__(
        self,
        model: "DeepSeekV3 | Stack",
        tokenizer: Tokenizer,
        options: EngineOptions | None = None,
    ):
        self.tokenizer = tokenizer
        self.options = options = options or EngineOptions()
        self._config = config = model.config
        options.check(config)
        if not isinstance(model, Stack) and runs_natively(model.lm_head.weight.device):
            model = stack_of(model, config)
        place = CachePlace.of(model, options)
        self._pool = PagePool(place.num_pages(options))
        self._scheduler = Scheduler(
            self._pool,
            context=config.max_position_embeddings,
            max_running=options.max_running,
            max_step_tokens=options.max_step_tokens,
            chunk=options.chunk,
            max_waiting=options.max_waiting,
            prefix_cache=options.prefix_cache,
        )
        self._cache = place.cache(self._pool.capacity + 1, fixed=options.deterministic)
        self._runner: Runner | NativeRunner
        if isinstance(model, Stack):
            self._runner = NativeRunner(model, self._cache, fixed=options.deterministic)
        else:
            self._runner = Runner(model, self._cache, TILE if options.deterministic else None)
        self._drafter = Drafter(self._runner, options.draft) if options.draft else None
        self._answers: dict[int, Answer] = {}
        self._num_steps = self._num_drawn = 0
        self._step_s = self._schedule_s = 0.0

    @cached_property
    def _grammars(self) -> "Grammars":
        from abyssal.engine.grammar import Grammars  # llguidance waits for the first of them

        return Grammars(self.tokenizer)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is running or waiting."""
        return self._scheduler.is_idle

    @property
    def runner(self) -> Runner | NativeRunner:
        """What computes a step."""
        return self._runner

    def compile(self, grammar: Grammar) -> Matcher:
        """A grammar ready for `Request.matcher`; may be called from any thread.

        Raises:
            RequestError: it cannot be compiled, or is too large.
        """
        return self._grammars.compile(grammar)

    def refresh(self, model: "DeepSeekV3") -> None:
        """Go on with the weights of a model like the one this engine was made of, in their place.

        What the cache holds is of the old weights: it is forgotten.
        """
        assert self.is_idle, "answers under way would end with other weights than they began with"
        self._runner.refresh(model)
        self._pool.forget()

    def add(self, request: Request) -> None:
        """Put a request at the end of its owner's queue.

        Raises:
            OverloadedError: the queue is full.
            RequestError: the cache is too small for it, even alone.
        """
        live = self._scheduler.add(request)
        self._answers[request.id] = Answer(live, self.tokenizer)

    def abort(self, request_id: int) -> None:
        """Forget a request, wherever it is; it is no error if it has ended."""
        if self._answers.pop(request_id, None):
            self._scheduler.abort(request_id)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One pass of the model: a delta for each token that became certain."""
        began = time.perf_counter()
        deltas = [
            self._answers.pop(live.request.id).end("deadline")
            for live in self._scheduler.expire(time.monotonic())
        ]
        planned = time.perf_counter()
        step = self._scheduler.plan()
        self._schedule_s = time.perf_counter() - planned
        if step is None:
            return deltas
        try:
            with even_shares() if self.options.deterministic else nullcontext():
                deltas += self._run(step)
        except Exception as problem:
            logger.exception("a pass of %d requests failed", len(step.entries))
            answers = [self._answers.get(entry.live.request.id) for entry in step.entries]
            deltas += [self._fail(answer, problem) for answer in answers if answer]
        self._num_steps += 1
        self._step_s = time.perf_counter() - began
        return deltas

    def stats(self) -> Stats:
        """Where things stand."""
        scheduler, drafter = self._scheduler, self._drafter
        return Stats(
            requests_running=scheduler.num_running,
            requests_waiting=scheduler.num_waiting,
            pages_in_use=self._pool.in_use,
            pages_total=self._pool.capacity,
            preemptions=scheduler.num_preemptions,
            prompt_tokens=scheduler.prompt_tokens_seen,
            prompt_tokens_cached=scheduler.prompt_tokens_cached,
            generation_tokens=self._num_drawn,
            drafted=list(drafter.drafted) if drafter else [],
            accepted=list(drafter.accepted) if drafter else [],
            steps=self._num_steps,
            expert_load=self._runner.expert_load.tolist(),
            step_s=self._step_s,
            schedule_s=self._schedule_s,
        )

    def _run(self, step: Step) -> list[Delta]:
        """The pass, the draws, the text and the next drafts of a step."""
        self._cache.copy(step.copies)
        deltas: list[Delta] = []
        turns = self._turns(step.entries, deltas)
        if not turns:
            return deltas
        scored = [row for turn in turns for row in turn.scored]
        routed = any(turn.wants_insight for turn in turns)
        readings = [turn.reading for turn in turns]
        hidden, logits, experts = self._runner.read(readings, scored, routed=routed)
        for turn in turns:
            if turn.answer.request.params.prompt_logprobs is not None:
                rows = hidden[turn.first : turn.first + turn.entry.count]
                self._score_prompt(turn.answer, turn.entry, rows)
        deltas += self._draw_all(turns, logits, experts)
        if self._drafter:
            going = [turn for turn in turns if turn.entry.live.request.id in self._answers]
            if going:
                pairs = [(turn.entry, turn.answer) for turn in going]
                self._drafter.propose(pairs, [turn.first for turn in going], hidden, self._guess)
        return deltas

    def _turns(self, entries: Sequence[Entry], deltas: list[Delta]) -> list[Turn]:
        """What there is to draw behind each entry; who has no row to draw ends in `deltas`."""
        turns: list[Turn] = []
        first = 0
        for entry in entries:
            answer = self._answers[entry.live.request.id]
            try:
                turns.append(Turn.of(entry, answer, first))
                first += entry.count
            except Exception as problem:  # noqa: BLE001 - see the module's docstring
                deltas.append(self._fail(answer, problem))
        return turns

    def _draw_all(self, turns: list[Turn], logits: Tensor, met: Tensor | None) -> list[Delta]:
        """Draw from logits (S, W), a row for each draw due, and commit every turn.

        `met` (T, M, K) are the experts of each row, where somebody asks for them.
        """
        rows = [row for turn in turns for row in turn.rows]
        choices = draw(logits, rows, self.tokenizer.vocab_size) if rows else []
        deltas: list[Delta] = []
        for turn in turns:
            mine, choices = choices[: len(turn.rows)], choices[len(turn.rows) :]
            try:
                deltas += self._take(turn, mine, met)
            except Exception as problem:  # noqa: BLE001 - see the module's docstring
                deltas.append(self._fail(turn.answer, problem))
        return deltas

    def _take(
        self, turn: Turn, choices: list[Choice | Exception], met: Tensor | None
    ) -> list[Delta]:
        """The tokens of a turn that are certain: up to the first that its draft did not guess."""
        live, answer = turn.entry.live, turn.answer
        drafts = list(live.drafts)
        tokens: list[int] = []
        deltas: list[Delta] = []
        for i, choice in enumerate(choices):
            if isinstance(choice, Exception):
                if deltas:
                    break  # told again when this token is due
                raise choice
            is_limit = len(live.tokens) + len(tokens) + 1 >= live.limit
            deltas.append(answer.take(choice.token, choice.logprob, choice.top, is_limit))
            tokens.append(choice.token)
            if deltas[-1].finish_reason or choice.token not in drafts[i : i + 1]:
                break
        verified = right = 0
        if self._drafter and drafts:
            right = sum(a == b for a, b in zip(drafts, tokens, strict=False))
            ended = deltas[-1].finish_reason is not None
            verified = min(len(drafts), len(tokens)) if ended else len(drafts)
            self._drafter.judge(verified, right)
        if met is not None and turn.wants_insight:
            deltas = answer.explained(deltas, turn.experts(met), verified, right)
        if turn.entry.is_last and not turn.rows:  # the prompt was all that was asked for
            deltas.append(answer.end("length"))
        self._num_drawn += len(tokens)
        self._scheduler.commit(turn.entry, tokens)
        if deltas and deltas[-1].finish_reason:
            self._scheduler.finish(live)
            del self._answers[live.request.id]
        return deltas

    def _guess(self, logits: Tensor, rows: Sequence[Row]) -> list[int | None]:
        """A draft's tokens; None where a draw fails, which is told when the token is due."""
        choices = draw(logits, rows, self.tokenizer.vocab_size)
        return [None if isinstance(choice, Exception) else choice.token for choice in choices]

    def _score_prompt(self, answer: Answer, entry: Entry, hidden: Tensor) -> None:
        """Note how likely each prompt token behind these places was, given hidden (T, D)."""
        live = entry.live
        targets = live.tokens[entry.start + 1 : min(entry.start + entry.count + 1, live.num_prompt)]
        missing = live.num_prompt - 1 - len(answer.prompt_logprobs)
        if not missing:  # read again after a preemption
            return
        asked = answer.request.params.prompt_logprobs or 0
        scored: list[tuple[float, TopLogprobs]] = []
        for logits in self._runner.logit_chunks(hidden[: len(targets)]):
            labels = targets[len(scored) : len(scored) + len(logits)]
            scored += given(logits, labels, asked)
        answer.prompt_logprobs[entry.start :] = scored

    def _fail(self, answer: Answer, problem: Exception) -> Delta:
        """End one request with an error, and nobody else's."""
        request_id = answer.request.id
        self._answers.pop(request_id, None)
        self._scheduler.abort(request_id)
        error, is_bug = str(problem), not isinstance(problem, AbyssalError)
        if is_bug:
            logger.error("request %d failed", request_id, exc_info=problem)
            error = f"the request failed inside the engine ({type(problem).__name__}); see its log"
        return Delta(request_id, None, finish_reason="error", error=error, is_bug=is_bug)


def runs_natively(device: torch.device) -> bool:
    """Whether models on this device run in native passes."""
    return device.type == "cpu" and native.is_available()
