"""How likely a model finds given tokens: one pass without a cache, many sequences at a time.

logprob_i = log softmax(head(hidden_i))[token_{i+1}]

T tokens of a batch    W vocab_size
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abyssal.batch import IGNORE, Batch
from abyssal.config import ModelConfig
from abyssal.engine.request import TopLogprobs
from abyssal.errors import RequestError

if TYPE_CHECKING:  # native passes need no model
    from abyssal.model.transformer import DeepSeekV3

BATCH_TOKENS = 4096  # in one pass
HEAD_NUMBERS = 2**24  # logits in memory together: 64 MiB of float32


def logprobs(model: "DeepSeekV3", sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each sequence of n tokens, the n - 1 log-probabilities of the second to the last.

    Raises:
        RequestError: a sequence is empty, too long for the model, or holds an unknown token.
    """
    for sequence in sequences:
        check(sequence, model.config)
    scored: list[list[float]] = [[] for _ in sequences]
    for group in _groups(sequences):
        flat = _score([sequences[i] for i in group], model)
        for i in group:
            count = len(sequences[i]) - 1
            scored[i], flat = flat[:count], flat[count:]
    return scored


def given(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[tuple[float, TopLogprobs]]:
    """For each row of logits (T, W) float32 its token's log-probability and the likeliest ones."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1).tolist()
    best = logprobs.topk(min(num_top, logits.shape[1]), -1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    tops = [tuple(zip(indices, values, strict=True)) for indices, values in pairs]
    return list(zip(chosen, tops, strict=True))


def check(sequence: Sequence[int], config: ModelConfig) -> None:
    """Raise RequestError if this is nothing a model can score."""
    longest, vocab_size = config.max_position_embeddings, config.vocab_size
    if not 1 <= len(sequence) <= longest:
        raise RequestError(
            f"{len(sequence)} tokens to score, expected 1 to {longest} (max_position_embeddings); "
            f"cut the sequence into windows"
        )
    if min(sequence) < 0 or max(sequence) >= vocab_size:
        wrong = next(t for t in sequence if not 0 <= t < vocab_size)
        raise RequestError(f"token {wrong}, expected ids from 0 to {vocab_size - 1} (vocab_size)")


def _groups(sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of the sequences that share a pass, longest first; one token alone has no part."""
    order = sorted(
        (i for i, s in enumerate(sequences) if len(s) > 1), key=lambda i: -len(sequences[i])
    )
    group: list[int] = []
    size = 0
    for i in order:
        if group and size + len(sequences[i]) > BATCH_TOKENS:
            yield group
            group, size = [], 0
        group.append(i)
        size += len(sequences[i])
    if group:
        yield group


@torch.inference_mode()
def _score(sequences: list[Sequence[int]], model: "DeepSeekV3") -> list[float]:
    """The log-probabilities of all sequences, laid end to end without their last rows."""
    labels = [[*sequence[1:], IGNORE] for sequence in sequences]
    batch = Batch.from_sequences(sequences, labels).to(model.lm_head.weight.device)
    assert batch.labels is not None
    real = batch.labels != IGNORE
    hidden, targets = model(batch).hidden[real], batch.labels[real]
    rows = max(HEAD_NUMBERS // model.config.vocab_size, 1)
    parts = [
        _picked(model.lm_head(h), t)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts).tolist()


def _picked(logits: Tensor, targets: Tensor) -> Tensor:
    """log_softmax of logits (T, W) at targets (T,), in float32."""
    logits = logits.float()
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)
