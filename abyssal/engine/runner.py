"""Requests in, deltas out: one model pass at a time over whoever is alive.

Each step gives every live request its tokens: one where an answer is being written, a piece of the
prompt where one is being read. Both ride in the same flat batch. Who finishes leaves, and who waits
takes the place as soon as the cache has room for all that the request may grow to.

The cache is padded to the longest request, so room is counted as requests times the longest.
"""

from collections import deque
from collections.abc import Sequence

import torch

from abyssal.batch import Batch
from abyssal.engine.cache import SequenceCache
from abyssal.engine.request import Delta, FinishReason, Request
from abyssal.engine.sampler import History, sample
from abyssal.engine.stop import Piece, Writer
from abyssal.model.transformer import DeepSeekV3, Output
from abyssal.tokenizer.bpe import Tokenizer

MAX_REQUESTS = 64  # alive at once
MAX_BATCH_TOKENS = 2048  # in one pass; longer prompts are read in pieces
CACHE_BYTES = 2**30  # a request that needs more than this runs alone

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: spreads the seeds of n answers


class _Live:
    """A request that holds a slot of the cache."""

    def __init__(self, request: Request, tokenizer: Tokenizer, limit: int, device: torch.device):
        self.request = request
        self.limit = limit  # tokens it may write
        self.num_computed = 0  # tokens in the cache
        self.written: list[int] = []
        self.generator = torch.Generator(device)
        seed = request.params.seed
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed((seed + request.sample * _GOLDEN) % 2**63)
        self.writer = Writer(tokenizer, tuple(request.params.stop), request.thinking)
        eos = () if request.params.ignore_eos else (tokenizer.eos_token_id,)
        self.ends = {*eos, *request.params.stop_token_ids}

    @property
    def pending(self) -> list[int]:
        """Tokens not yet in the cache."""
        prompt = self.request.tokens
        return [
            *prompt[self.num_computed :],
            *self.written[max(self.num_computed - len(prompt), 0) :],
        ]

    def accept(self, token: int) -> tuple[Piece, FinishReason | None]:
        """Take the token drawn: what it adds to the text, and why the answer ends, if it does."""
        self.written.append(token)
        piece = self.writer.push(token)
        if piece.stopped:
            return piece, "stop"
        ended = token in self.ends
        if not ended and len(self.written) < self.limit:
            return piece, None
        rest = self.writer.finish()
        piece = Piece(piece.text + rest.text, piece.reasoning + rest.reasoning)
        return piece, "stop" if ended or rest.stopped else "length"


class Runner:
    """A queue of requests and the cache of those alive. Not thread-safe: one caller at a time."""

    def __init__(self, model: DeepSeekV3, tokenizer: Tokenizer, cache_bytes: int = CACHE_BYTES):
        self.model = model
        self.tokenizer = tokenizer
        self._waiting: deque[Request] = deque()
        self._live: list[_Live] = []  # the s-th holds slot s
        weight = model.lm_head.weight
        self._device = weight.device
        self._cache = SequenceCache(model.config, model.embed_tokens.weight.dtype, weight.device)
        per_token = (
            model.config.num_hidden_layers * model.config.latent_size * weight.element_size()
        )
        self._max_positions = cache_bytes // per_token

    @property
    def is_idle(self) -> bool:
        """Whether nobody is alive or waiting."""
        return not self._live and not self._waiting

    def add(self, request: Request) -> None:
        """Put a request, whose prompt is known to fit, at the end of the queue."""
        self._waiting.append(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request, wherever it is; it is no error if it has finished."""
        self._waiting = deque(r for r in self._waiting if r.id != request_id)
        for slot in reversed(range(len(self._live))):
            if self._live[slot].request.id == request_id:
                self._leave(slot)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """One pass of the model: a delta for each live request whose prompt is read by now."""
        self._admit()
        if not self._live:
            return []
        pieces = self._pieces()
        ready = [
            slot for slot, live in enumerate(self._live) if len(pieces[slot]) == len(live.pending)
        ]
        last = [sum(map(len, pieces[: slot + 1])) - 1 for slot in ready]
        hidden = self._forward(pieces)
        for live, piece in zip(self._live, pieces, strict=True):
            live.num_computed += len(piece)
        if not ready:
            return []
        logits = self.model.lm_head(hidden[last]).float()  # (S, W)
        rows = [self._live[slot] for slot in ready]
        drawn = sample(
            logits,
            [live.request.params for live in rows],
            [live.generator for live in rows],
            [History(live.request.tokens, live.written) for live in rows],
            self.tokenizer.vocab_size,
        )
        results = zip(rows, drawn.tokens, drawn.logprobs, drawn.top_logprobs, strict=True)
        deltas = [_accept(live, token, logprob, top) for live, token, logprob, top in results]
        for slot, delta in reversed(list(zip(ready, deltas, strict=True))):
            if delta.finish_reason:
                self._leave(slot)
        return deltas

    def _admit(self) -> None:
        """Let requests in, first come first served, while the pass and the cache have room."""
        busy = sum(len(live.pending) for live in self._live)
        while self._waiting and len(self._live) < MAX_REQUESTS and busy < MAX_BATCH_TOKENS:
            request = self._waiting[0]
            longest = max(self._reach(r) for r in [request, *(live.request for live in self._live)])
            if self._live and (len(self._live) + 1) * longest > self._max_positions:
                return
            self._waiting.popleft()
            limit = self._reach(request) - len(request.tokens)
            self._live.append(_Live(request, self.tokenizer, limit, self._device))
            self._cache.add()
            busy += len(request.tokens)

    def _reach(self, request: Request) -> int:
        """The most tokens a request can come to, prompt and answer."""
        context = self.model.config.max_position_embeddings
        return min(len(request.tokens) + request.params.max_tokens, context)

    def _pieces(self) -> list[list[int]]:
        """The tokens of each live request in this pass, at least one each."""
        room = MAX_BATCH_TOKENS - len(self._live)  # one is set aside for everybody
        pieces = []
        for live in self._live:
            pending = live.pending
            piece = pending[: room + 1]
            room -= len(piece) - 1
            pieces.append(piece)
        return pieces

    def _forward(self, pieces: Sequence[list[int]]) -> torch.Tensor:
        """Hidden states (T, D) of these tokens, each request's at its own positions."""
        counts = [len(piece) for piece in pieces]
        starts = [live.num_computed for live in self._live]
        positions = [
            p for start, n in zip(starts, counts, strict=True) for p in range(start, start + n)
        ]
        batch = Batch(
            torch.tensor([token for piece in pieces for token in piece]),
            torch.tensor(positions),
            torch.tensor([0, *counts]).cumsum(0),
        )
        self._cache.begin(counts)
        output: Output = self.model(batch.to(self._device), self._cache)
        return output.hidden

    @torch.inference_mode()  # as the buffer was made
    def _leave(self, slot: int) -> None:
        """Free a slot; the request in the last one moves into it, as in the cache."""
        self._cache.remove(slot)
        last = self._live.pop()
        if slot < len(self._live):
            self._live[slot] = last


def _accept(
    live: _Live, token: int, logprob: float | None, top: tuple[tuple[int, float], ...]
) -> Delta:
    piece, reason = live.accept(token)
    return Delta(live.request.id, token, piece.text, logprob, reason, piece.reasoning, top)
