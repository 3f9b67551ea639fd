"""Grammars as masks of tokens: JSON, JSON schemas, regular expressions and Lark, by `llguidance`.

A grammar may come from a stranger. So compiling is bounded: in the size of the source, in what the
library may build, and in time. What compiles is tried for a few tokens before anybody is told so,
because a grammar can be small and still explode at the first bytes it reads.

Control tokens are no text. Only a Lark grammar that names one by its id, as in <[128808]>, can ask
for it, and a text that spells its name never matches it.
"""

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cached_property

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark
from numpy.typing import NDArray

from abyssal.engine.request import Grammar
from abyssal.errors import OverloadedError, RequestError
from abyssal.tokenizer.bpe import Tokenizer

MAX_SOURCE_BYTES = 64 * 1024
MAX_COMPILE_S = 5.0
MAX_MULTIPLE = 10_000  # the automaton for multiples of n has n states, and none of the limits holds
TRIED_TOKENS = 16
CACHED_GRAMMARS = 64

_LIMITS = LLParserLimits(
    initial_lexer_fuel=300_000,
    step_lexer_fuel=100_000,  # a bomb costs a step 20 ms and its request
    max_lexer_states=100_000,  # of half a KB, shared by all answers to one grammar
    max_grammar_size=20_000,
    verbose_errors=False,
)
_JSON_OPTIONS = {
    "lenient": False,  # a keyword that is not understood is refused, never ignored
    # One line break and its indentation: no model can lose itself in white space.
    "whitespace_pattern": r"\r?\n[ \t]{0,40}|[ \t]{1,40}",
}
# Bytes without an alternative are otherwise found at once, a million of them in a{1000000}.
_LARK_OPTIONS = '%llguidance {"no_forcing": true}\n'


class GrammarMatcher:
    """A compiled grammar and how far an answer has come in it: a `request.Matcher`."""

    def __init__(self, state: LLMatcher, after: int | None, eos_token_id: int):
        self._state, self._after, self._eos = state, after, eos_token_id
        self._runs = after is None
        self._read = 0  # tokens since the grammar was switched on
        self._ended = 0  # end-of-sentence tokens behind the last one that could follow

    def fork(self) -> "GrammarMatcher":
        """The same grammar at the same place, to go on independently."""
        other = GrammarMatcher(self._state.deep_copy(), self._after, self._eos)
        other._runs, other._read, other._ended = self._runs, self._read, self._ended
        return other

    def allowed(self) -> NDArray[np.int32] | None:
        """Which tokens may come next: bits (ceil(W/32),), lowest first; None: any.

        End-of-sentence is among them exactly when the answer may be complete.

        Raises:
            RequestError: it would take too long to say.
        """
        if not self._runs:
            return None
        mask = np.frombuffer(self._state.compute_bitmask(), dtype=np.int32)
        if fault := _fault(self._state):
            raise RequestError(f"the grammar cannot go on ({_shortened(fault)}); simplify it")
        return mask

    def accept(self, token: int) -> None:
        """Go on by one token.

        Raises:
            RequestError: the grammar does not allow it; the place stays what it was.
        """
        if not self._runs:
            self._runs = token == self._after
        elif self._state.try_consume_tokens([token]) == 1:
            self._read += 1
        elif token == self._eos and self._state.is_stopped() and not _fault(self._state):
            self._ended += 1
        else:
            raise RequestError(f"the grammar does not allow token {token} here; draw by its mask")

    def rollback(self, count: int) -> None:
        """Take back the last count tokens accepted."""
        ended = min(count, self._ended)
        read = min(count - ended, self._read)
        if read and not self._state.rollback(read):
            raise RequestError(f"the grammar cannot go back ({_shortened(_fault(self._state))})")
        if ended + read < count:  # back to before the token that switched it on
            assert self._after is not None, "more tokens than were accepted"
            self._runs = False
        self._ended -= ended
        self._read -= read


class Grammars:
    """Compiles grammars for one vocabulary and remembers the last ones; any thread may call it."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._compilers = threading.BoundedSemaphore(2)

    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """The grammar at its beginning.

        Raises:
            RequestError: it is none, asks for what we cannot hold to, allows nothing or explodes.
            OverloadedError: others are being compiled.
        """
        key = (grammar.kind, grammar.source)
        with self._lock:
            state = self._compiled.get(key)
            # Answers share the states they have visited; when those are too many, all is over.
            if state is not None and not _is_open(state.deep_copy()):
                state = None
        if state is None:
            state = self._build(grammar)
        with self._lock:
            self._compiled[key] = state
            self._compiled.move_to_end(key)
            if len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
            return GrammarMatcher(state.deep_copy(), grammar.after, self._tokenizer.eos_token_id)

    def _build(self, grammar: Grammar) -> LLMatcher:
        """The grammar compiled and tried, in a thread that is left behind if it takes too long."""
        if fault := _flaw(grammar.source):
            raise _refusal(grammar, fault)
        if not self._compilers.acquire(timeout=MAX_COMPILE_S):
            raise OverloadedError("other grammars are being compiled; send the request again")
        found: list[LLMatcher | str] = []

        def work() -> None:
            try:
                found.append(self._compile(grammar))
            except ValueError as error:
                found.append(str(error))
            finally:
                self._compilers.release()

        thread = threading.Thread(target=work, name="grammar", daemon=True)
        thread.start()
        thread.join(MAX_COMPILE_S)
        outcome = found[0] if found else f"it is not compiled after {MAX_COMPILE_S:g} s"
        if isinstance(outcome, str):
            raise _refusal(grammar, outcome)
        return outcome

    def _compile(self, grammar: Grammar) -> LLMatcher:
        """The compiled grammar; a ValueError says why there is none."""
        lark = _LARK[grammar.kind](grammar.source)
        _check_multiples(lark)
        state = LLMatcher(self._vocabulary, _LARK_OPTIONS + lark, log_level=0, limits=_LIMITS)
        if state.is_error():
            raise ValueError(state.get_error())
        self._try(state.deep_copy())
        return state

    def _try(self, state: LLMatcher) -> None:
        """Write a few tokens as the grammar allows; a ValueError says why that fails."""
        rng = np.random.default_rng(0)
        for _ in range(TRIED_TOKENS):
            mask = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)
            if fault := _fault(state):
                raise ValueError(fault)
            tokens = np.unpackbits(mask, bitorder="little").nonzero()[0]
            tokens = tokens[tokens != self._tokenizer.eos_token_id]
            if not len(tokens):
                return
            state.consume_token(int(rng.choice(tokens)))

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer)))


class _Vocabulary:
    """A tokenizer as llguidance asks for one."""

    def __init__(self, tokenizer: Tokenizer):
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = list(tokenizer.spelled)
        self.special_token_ids = sorted(tokenizer.control_ids)
        self._encode = tokenizer.encode_batch

    def __call__(self, text: str) -> list[int]:
        """The tokens of text."""
        return self._encode([text])[0]


def _flaw(source: str) -> str:
    """What is wrong with a source whatever it says; empty if nothing is."""
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        return "it holds a lone surrogate, which UTF-8 cannot spell"
    if size > MAX_SOURCE_BYTES:
        return f"it has {size:,} bytes and may have {MAX_SOURCE_BYTES:,}"
    return ""


def _fault(state: LLMatcher) -> str:
    """Why an answer cannot go on from here, and is not complete either; empty if it can or is."""
    said = state.get_error()
    is_stuck = state.is_stopped() and not state.is_accepting()
    return "nothing can follow" if is_stuck and said[:11] in ("", "NoExtension") else said


def _is_open(state: LLMatcher) -> bool:
    state.compute_bitmask()
    return not _fault(state)


def _refusal(grammar: Grammar, reason: str) -> RequestError:
    return RequestError(
        f"the {grammar.kind} grammar cannot be used: {_shortened(reason)}; change or leave it out"
    )


def _shortened(reason: str) -> str:
    """The first 300 characters of what llguidance says, without its own state."""
    said = " ".join(re.split(r"<backtrace>|<non-verbose/>|<state>", reason)[0].split())
    return said if len(said) <= 300 else said[:299] + "…"


def _schema_lark(source: str) -> str:
    try:
        schema = json.loads(source)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(schema, dict):
        raise ValueError("a schema is a JSON object")
    return f"start: %json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}\n"


def _regex_lark(source: str) -> str:
    if (len(source) - len(source.rstrip("\\"))) % 2:
        raise ValueError("the expression ends in a lone backslash")
    return f"start: /{regex_to_lark(source, 'd')}/\n"  # \\d is 0 to 9, as in JSON schemas


_LARK: dict[str, Callable[[str], str]] = {
    "json_object": lambda _: _schema_lark('{"type": "object"}'),
    "json_schema": _schema_lark,
    "regex": _regex_lark,
    "lark": str,
}


def _check_multiples(lark: str) -> None:
    """Refuse schemas whose numbers are multiples of too large a number, each or all together."""
    together = 1
    for at in re.finditer(r"%json\s*", lark):
        try:
            schema, _ = json.JSONDecoder().raw_decode(lark, at.end())
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        for step in _multiples(schema):
            digits = Decimal(str(step)).normalize().as_tuple().digits  # tens come for free
            together = math.lcm(together, int("".join(map(str, digits))) or 1)
    if together > MAX_MULTIPLE:
        raise ValueError(f"multipleOf comes to {together}, more than {MAX_MULTIPLE} together")


def _multiples(schema: object) -> Iterator[float]:
    """The values of all multipleOf in a JSON value."""
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            step = value.get("multipleOf")
            if isinstance(step, int) or (isinstance(step, float) and math.isfinite(step)):
                yield step
            left += value.values()
        elif isinstance(value, list):
            left += value
