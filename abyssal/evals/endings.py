"""Contexts and endings as the tokens to be scored, and which ending a model chooses.

The split is lm-eval's: context and ending are encoded together, and what lies behind as many tokens
as the context alone has is the ending.
"""

from collections.abc import Sequence

from abyssal.engine.likelihood import Continuation
from abyssal.evals.records import Row
from abyssal.evals.task import Choice
from abyssal.tokenizer.bpe import Tokenizer


def continuations(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], context: int
) -> list[Continuation]:
    """Contexts and endings as tokens, split where the context's own tokens end, as lm-eval does.

    BOS stands before each. What is longer than the model reads loses tokens behind BOS.
    """
    bos = [tokenizer.bos_token_id]
    wholes = tokenizer.encode_batch([before + ending for before, ending in pairs])
    befores = tokenizer.encode_batch([before for before, _ in pairs])
    return [
        fitted(bos, before, whole[len(before) :], context)
        for before, whole in zip(befores, wholes, strict=True)
    ]


def fitted(
    opening: list[int], before: Sequence[int], ending: Sequence[int], context: int
) -> Continuation:
    """An ending behind as much of what stands before it as the model reads."""
    if not ending:  # the context's last token has swallowed it
        before, ending = before[:-1], before[-1:]
    room = context - len(opening)
    kept = [*before, *ending][-room:]
    return Continuation([*opening, *kept], max(len(opening) + len(kept) - len(ending), 1))


def chosen(choice: Choice, logprobs: list[float], normalized: bool) -> Row:
    """What a line says of a choice: the first of the likeliest endings is the model's."""
    row: Row = {"endings": list(choice.endings), "right": choice.right, "logprobs": logprobs}
    row["acc"] = float(_first_best(logprobs) == choice.right)
    if normalized:
        per_letter = [
            logprob / max(len(name), 1)
            for logprob, name in zip(logprobs, choice.names, strict=True)
        ]
        row["acc_norm"] = float(_first_best(per_letter) == choice.right)
    return row


def _first_best(values: list[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))
