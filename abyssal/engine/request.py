"""What is asked of the engine and what comes back. No torch: these travel to servers and files.

The order in which sampling values act: logit_bias, then the three penalties, then temperature,
top_k, top_p and min_p, each on what the one before has left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict

import numpy as np

from abyssal.errors import RequestError
from abyssal.tokenizer.calls import CallPiece, join_calls
from abyssal.tokenizer.message import ToolCall
from abyssal.tokenizer.template import Layout

FinishReason = Literal["stop", "length", "deadline", "error"]

MAX_LOGPROBS = 20  # alternatives reported per token


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """What an answer must look like: every token that would break it is masked."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    source: str = ""  # the schema as JSON text, the expression, or the grammar
    after: int | None = None  # a token that switches it on; None: from the first token


class Matcher(Protocol):
    """A compiled grammar and how far an answer has come in it; engine/grammar.py has the one."""

    def fork(self) -> "Matcher":
        """The same grammar at the same place, to go on independently."""

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next: bits (ceil(W/32),) int32, lowest first; None: any."""

    def accept(self, token: int) -> None:
        """Go on by one allowed token."""

    def rollback(self, count: int) -> None:
        """Take back the last count tokens accepted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How to draw the tokens of one request; the defaults draw from the model as it is."""

    max_tokens: int = 256
    temperature: float = 1.0  # 0: always the most likely token
    top_p: float = 1.0  # the fewest tokens that together have this probability
    top_k: int = 0  # this many most likely tokens; 0: all
    min_p: float = 0.0  # tokens at least this likely, in proportion to the most likely one
    presence_penalty: float = 0.0  # off the logit of a token written before
    frequency_penalty: float = 0.0  # off the logit, once for each time it was written
    repetition_penalty: float = 1.0  # divides the logit of a token in prompt or answer (CTRL, 2019)
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()  # texts that end the answer and are not part of it
    stop_token_ids: Sequence[int] = ()  # tokens that end the answer, besides end-of-sentence
    ignore_eos: bool = False
    seed: int | None = None  # None: another answer each time
    logprobs: int | None = None  # 0: of each token written; k: also of the k most likely
    scaled_logprobs: bool = False  # those of logits / temperature, which it was drawn from
    n: int = 1  # answers to each prompt
    bad_words: Sequence[str] = ()  # texts that are never written
    prompt_logprobs: int | None = None  # as logprobs, of the prompt; max_tokens may then be 0
    grammar: Grammar | None = None  # what the answer must look like
    insight: bool = False  # tell how each token came about

    def __post_init__(self) -> None:
        """Accept a single stop text, keep tuples, and refuse impossible values."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "bad_words", tuple(self.bad_words))
        for name, (low, high) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high)
        for name, (least, most) in _COUNTS.items():
            value = getattr(self, name)
            if value is not None:
                _check_count(name, value, least, most)
        if self.top_p == 0 or self.repetition_penalty == 0:
            name = "top_p" if self.top_p == 0 else "repetition_penalty"
            raise RequestError(f"{name}=0, expected a number above 0; leave it out to turn it off")
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise RequestError("max_tokens=0, expected at least 1; 0 is for prompt_logprobs alone")
        for name, texts in (("stop", self.stop), ("bad_words", self.bad_words)):
            for text in texts:
                if not isinstance(text, str) or not text:
                    raise RequestError(
                        f"{name}={text!r}, expected a text of at least one character"
                    )
        for token in (*self.stop_token_ids, *self.logit_bias):
            _check_count("stop_token_ids and logit_bias", token, 0, _HUGE)
        for bias in self.logit_bias.values():
            _check_number("logit_bias", bias, -100.0, 100.0)


class SamplingChanges(TypedDict, total=False):
    """The fields of SamplingParams, as keyword arguments of LLM's methods."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    seed: int | None
    logprobs: int | None
    scaled_logprobs: bool
    n: int
    bad_words: Sequence[str]
    prompt_logprobs: int | None
    grammar: Grammar | None
    insight: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt to be continued once."""

    id: int
    tokens: list[int]
    params: SamplingParams
    sample: int = 0  # which of the n answers; each draws its own random numbers
    thinking: bool = False  # the answer opens inside <think>
    layout: Layout | None = None  # whose tool calls are recognized in the answer; None: nobody's
    group: int | None = None  # id of the first of the n answers, whose prompt this one shares
    owner: str = ""  # whoever sent it; owners take turns when requests wait
    salt: bytes = b""  # requests share cached prefixes only under the same salt
    deadline_s: float | None = None  # of time.monotonic(): the answer ends here, finished or not
    matcher: Matcher | None = None  # the compiled params.grammar, at its beginning


TopLogprobs = tuple[tuple[int, float], ...]  # (token, logprob), the most likely first


@dataclass(frozen=True, slots=True)
class Insight:
    """How one token came about.

    A token is drawn from the scores of one row of a pass of the main model: the row that read the
    token before it, the prompt's last one for the first token of an answer. The experts are those
    that this row met, so they belong to the token before and decided over this one. They are what
    a pass over the finished text finds at that place (up to rounding, which may exchange experts
    that score alike). The MTP module's own routing is not among them.
    """

    experts: tuple[tuple[int, ...], ...]  # (M, K): of each MoE layer, the best first
    is_draft: bool  # the MTP module had guessed this token, and verification drew it too
    drafted: int  # guesses verified for this answer, up to and with this token's pass ...
    accepted: int  # ... that were right


@dataclass(frozen=True, slots=True)
class Delta:
    """One token of one request, and the text that became certain with it."""

    request_id: int
    token: int | None  # None: the end of an answer that came without a token
    text: str = ""  # complete characters only, and nothing that may yet become a stop text
    logprob: float | None = None  # of the model's own distribution, before any sampling value
    finish_reason: FinishReason | None = None  # set on the last one
    reasoning: str = ""  # text written inside <think>, when the request thinks
    top_logprobs: TopLogprobs = ()
    calls: tuple[CallPiece, ...] = ()  # pieces of tool calls
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    prompt_logprobs: tuple[tuple[float, TopLogprobs], ...] | None = None  # with the first one
    error: str | None = None  # what ended the answer, with finish_reason "error"
    is_bug: bool = False  # ... and it was no fault of the request
    insight: Insight | None = None  # of the token, for who asked


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """All that one request wrote."""

    text: str  # without control tokens, cut before a stop text
    tokens: list[int]  # every token drawn, the one that ended the answer included
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: list[float] | None = None  # one for each of tokens, if asked for
    top_logprobs: list[TopLogprobs] | None = None
    reasoning: str | None = None  # None where the request did not think
    tool_calls: tuple[ToolCall, ...] = ()
    cached_tokens: int = 0  # of prompt_tokens, found in the prefix cache
    prompt_logprobs: list[tuple[float, TopLogprobs]] | None = None  # of all but its first token
    error: str | None = None
    insight: list[Insight] | None = None  # of each of tokens, if asked for

    @property
    def completion_tokens(self) -> int:
        """Tokens drawn, as a bill would count them."""
        return len(self.tokens)

    @classmethod
    def from_deltas(cls, request: Request, deltas: Sequence[Delta]) -> "Completion":
        """Join the deltas of a finished request."""
        last = deltas[-1]
        assert last.finish_reason is not None, "the request is not finished"
        drawn = [delta for delta in deltas if delta.token is not None]
        prompt = next((d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None), None)
        asked = request.params.logprobs
        reasoning = "".join(delta.reasoning for delta in deltas)
        return cls(
            text="".join(delta.text for delta in deltas),
            tokens=[delta.token for delta in deltas if delta.token is not None],
            finish_reason=last.finish_reason,
            prompt_tokens=len(request.tokens),
            logprobs=None if asked is None else [d.logprob for d in drawn if d.logprob is not None],
            top_logprobs=[delta.top_logprobs for delta in drawn] if asked else None,
            reasoning=reasoning if reasoning or request.thinking else None,
            tool_calls=join_calls(piece for delta in deltas for piece in delta.calls),
            cached_tokens=last.cached_tokens,
            prompt_logprobs=None if prompt is None else list(prompt),
            error=last.error,
            insight=[d.insight for d in drawn if d.insight] if request.params.insight else None,
        )


_HUGE = 2**63 - 1
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.0, 100.0),
}
_COUNTS = {
    "max_tokens": (0, _HUGE),
    "top_k": (0, _HUGE),
    "seed": (0, _HUGE),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "n": (1, 1024),
}


def _check_number(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name}={value!r}, expected a number from {low:g} to {high:g}")


def _check_count(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        limit = f"at least {least}" if most == _HUGE else f"from {least} to {most}"
        raise RequestError(f"{name}={value!r}, expected an integer {limit}")
