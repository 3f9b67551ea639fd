"""Logits to tokens: masks, bias, penalties, temperature, top-k, top-p, min-p, one draw a row.

    token = argmax_i (logits_i / temperature - log(-log(1 - v_i))),  v_i uniform          Gumbel-max

That draws from the softmax exactly. The noise v is a function of the seed, of which of the n
answers it is and of the place in the answer, by a counter-based generator (Philox: Salmon et al.,
2011). So there is no state to carry: a request that was preempted, drafted ahead or read in other
pieces draws what it would have drawn alone. Rounding in the logits moves a draw only where two
tokens are as close as rounding; inverting the distribution function would add up all of it.

Each row is drawn by itself, so that not a bit of it depends on its company: vectorized exp and log
round differently from the scalar ones that finish an array, and company would move the end.

    S rows, one a token to be drawn    W vocab_size
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from abyssal.engine.request import MAX_LOGPROBS, SamplingParams, TopLogprobs
from abyssal.errors import RequestError

Floats = NDArray[np.float32]

_LARGEST = np.float32(1 - 2**-24)  # below 1: its noise is finite


class Row(NamedTuple):
    """One token to be drawn: by which values, at which place, after what."""

    params: SamplingParams
    seed: int  # 64 bits
    sample: int  # which of the n answers
    position: int  # which token of the answer
    prompt: Sequence[int]
    written: Sequence[int]  # of the answer, drafts before this row included
    allowed: NDArray[np.int32] | None = None  # bits (ceil(W/32),), lowest first; None: any
    banned: Sequence[int] = ()


class Drawn(NamedTuple):
    """One token per row, and what the model itself thought of it."""

    tokens: list[int]
    logprobs: list[float | None]  # log-softmax of the given logits; None where not asked for
    top_logprobs: list[TopLogprobs]


class NothingToDraw(RequestError):
    """Rows without a token to draw; none was drawn for the others, which may be sampled again."""

    def __init__(self, message: str, rows: list[int]):
        super().__init__(message)
        self.rows = rows


def sample(logits: Tensor, rows: Sequence[Row], vocab_size: int | None = None) -> Drawn:
    """Draw a token for each row of logits (S, W) float32 on the CPU; ids from vocab_size on never.

    Raises:
        NothingToDraw: masks leave a row nothing, or its logits are not finite.
    """
    scores = _adjusted(logits.numpy(), rows)[:, :vocab_size]
    tokens = scores.argmax(-1).tolist()  # numpy promises the first of equals
    _check(scores, tokens, rows)
    with np.errstate(over="ignore"):  # minus infinity is right for what is hopelessly far behind
        for i, row in enumerate(rows):
            if row.params.temperature > 0:
                tokens[i] = _draw(scores[i] - scores[i, tokens[i]], row)
    return _report(logits, tokens, rows, vocab_size)


def _adjusted(logits: Floats, rows: Sequence[Row]) -> Floats:
    """Logits (S, W) after masks, bias and penalties; the same array where nobody asks for any."""
    touched = [i for i, row in enumerate(rows) if _is_touched(row)]
    if not touched:
        return logits
    scores = logits.copy()
    for i in touched:
        _adjust(scores[i], rows[i])
    return scores


def _is_touched(row: Row) -> bool:
    p = row.params
    penalized = p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0
    return bool(penalized or p.logit_bias or len(row.banned) or row.allowed is not None)


def _adjust(scores: Floats, row: Row) -> None:
    """Mask, bias and penalize the scores (W,) of one row in place."""
    p = row.params
    if row.allowed is not None:
        bits = np.unpackbits(row.allowed.view(np.uint8), count=len(scores), bitorder="little")
        np.putmask(scores, bits == 0, -np.inf)
    if len(row.banned):
        scores[_ids(row.banned)] = -np.inf
    if p.logit_bias:
        scores[list(p.logit_bias)] += np.array(list(p.logit_bias.values()), dtype=np.float32)
    if p.repetition_penalty != 1.0:
        seen = np.zeros(len(scores), dtype=bool)
        seen[_ids(row.prompt)] = seen[_ids(row.written)] = True
        old, divisor = scores[seen], np.float32(p.repetition_penalty)
        scores[seen] = np.where(old > 0, old / divisor, old * divisor)
    if p.presence_penalty or p.frequency_penalty:
        counts = np.bincount(_ids(row.written))
        used = counts.nonzero()
        penalty = p.presence_penalty + p.frequency_penalty * counts[used]
        scores[used] -= penalty.astype(np.float32)


def _ids(tokens: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(tokens, dtype=np.int64)


def _check(scores: Floats, best: Sequence[int], rows: Sequence[Row]) -> None:
    """Refuse rows of scores (S, W) whose best is no number: nothing can be drawn from them."""
    found = scores[np.arange(len(scores)), best]
    wrong = np.flatnonzero(~np.isfinite(found)).tolist()
    if not wrong:
        return
    i, value = wrong[0], found[wrong[0]]
    if value == -np.inf:
        reason = "grammar and bad_words leave no token to draw; loosen one of them"
    else:
        reason = f"the best logit is {value}, expected a finite number; check the weights"
    where = f"row {i} of {len(rows)}, token {rows[i].position} of its answer"
    raise NothingToDraw(f"{where}: {reason}", wrong)


def _draw(scores: Floats, row: Row) -> int:
    """A token of the scores (W,), of which the best is 0, at a temperature above 0."""
    p = row.params
    # Since the best is 0, no temperature is small enough to overflow it.
    scores = scores / np.float32(max(p.temperature, 1e-30))
    if p.top_k or p.top_p < 1:
        scores = _most_likely(scores, p.top_k or len(scores), p.top_p)
    if p.min_p:
        np.putmask(scores, scores < np.float32(math.log(p.min_p)), -np.inf)
    return int((scores - _log_exponential(row, len(scores))).argmax())


def _log_exponential(row: Row, width: int) -> Floats:
    """log(-log(1 - v)) (width,): the same for the same seed, answer and place in it."""
    key = np.array([row.seed, row.sample], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=[0, 0, row.position, 0])
    v = philox.random_raw((width + 1) // 2).view(np.uint32)[:width].astype(np.float32)
    # From 2^-33 up, all 32 bits where v is small: that is where rare tokens have their chance.
    v = np.minimum((v + np.float32(0.5)) * np.float32(2**-32), _LARGEST)
    noise: Floats = np.log(-np.log1p(-v))
    return noise


def _most_likely(scores: Floats, top_k: int, top_p: float) -> Floats:
    """The scores (W,) of the top_k and, of those, the top_p, others -inf; of equals the first."""
    count = min(top_k, len(scores))
    descending = np.sort(np.partition(scores, -count)[-count:])[::-1]
    if top_p < 1:
        mass = np.exp(descending).cumsum(dtype=np.float64)
        count = int(np.searchsorted(mass[:-1], top_p * mass[-1])) + 1  # what is likelier suffices
    keep = scores >= descending[count - 1]
    excess = np.count_nonzero(keep) - count
    if excess:
        keep[np.flatnonzero(scores == descending[count - 1])[-excess:]] = False
    return np.where(keep, scores, np.float32(-np.inf))


def _report(
    logits: Tensor, tokens: list[int], rows: Sequence[Row], vocab_size: int | None
) -> Drawn:
    """The tokens with the log-probabilities their requests ask for."""
    logprobs: list[float | None] = [None] * len(rows)
    top: list[TopLogprobs] = [()] * len(rows)
    for i, row in enumerate(rows):
        asked = row.params.logprobs
        if asked is None:
            continue
        own = logits[i]
        if row.params.scaled_logprobs and row.params.temperature > 0:
            own = own / row.params.temperature
        own = own.log_softmax(-1)[:vocab_size]  # (W,)
        logprobs[i] = float(own[tokens[i]])
        if asked:
            # As many for everybody: which of equals come first depends on how many are asked.
            values, ids = own.topk(min(MAX_LOGPROBS, len(own)))
            top[i] = tuple(zip(ids[:asked].tolist(), values[:asked].tolist(), strict=True))
    return Drawn(tokens, logprobs, top)
