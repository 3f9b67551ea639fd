"""Texts and conversations to tokens, ready for shards: BOS, the text, EOS, or a chat layout's
tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from abyssal.data.conversations import encode_conversation, unfold
from abyssal.data.documents import DropReport
from abyssal.data.shards import Shards, write_shards
from abyssal.tokenizer import control
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Layout, Message

Encoded = tuple[list[int], list[bool] | None]

_BATCH = 256  # items encoded at a time, on all cores


def encode(
    items: Iterable[str | Sequence[Message]],
    tokenizer: Tokenizer,
    *,
    layout: Layout = "v3",
    masked: bool = True,
    split_rate: float = 0.0,
    seed: int = 0,
) -> Iterator[Encoded]:
    """The tokens of every text or conversation, and which to learn; None where all are.

    A conversation in which several answers think becomes several (`conversations.unfold`). Without
    `masked`, conversations are learned whole, as in pre-training. A share split_rate of the
    tokens that join punctuation and a line break is taken apart in texts, so that the model also
    meets the two alone (section 4.1; the paper does not give the share).
    """
    rng = np.random.default_rng(seed)
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        texts = iter(tokenizer.encode_batch([item for item in batch if isinstance(item, str)]))
        for item in batch:
            if isinstance(item, str):
                tokens = next(texts)
                if split_rate > 0:
                    tokens = tokenizer.split_combined(tokens, split_rate, rng)
                yield [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id], None
            else:
                for part in unfold(item, layout) if masked else [item]:
                    tokens, mask = encode_conversation(part, tokenizer, layout)
                    yield tokens, mask if masked else None


def write_encoded(
    out: str | Path, encoded: Iterable[Encoded], tokenizer: Tokenizer, report: DropReport
) -> Shards:
    """Write encoded documents into a new shard folder, with what the tokenizer knows."""
    return write_shards(
        out,
        encoded,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        control=control_tokens(tokenizer),
        report=report,
    )


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """What meta.json of shards says of control tokens."""
    return {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "fim_begin": tokenizer.control(control.FIM_BEGIN),
        "fim_hole": tokenizer.control(control.FIM_HOLE),
        "fim_end": tokenizer.control(control.FIM_END),
    }
