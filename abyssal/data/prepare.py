"""Text files and chats to shards: read, clean, drop duplicates, encode, write.

Every document becomes BOS text EOS; a conversation becomes its layout's tokens. What was dropped, and
why, stands in the shards' meta.json.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from abyssal.data.conversations import encode_conversation, read_conversations
from abyssal.data.documents import DropReport, deduplicate, read_documents
from abyssal.data.shards import Shards, write_shards
from abyssal.errors import DataError
from abyssal.tokenizer import bpe
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Layout, Message

Encoded = tuple[list[int], list[bool] | None]

_TOGETHER = 1000  # texts encoded in one call, which uses all cores
_CONTROL = {
    "bos": bpe.BOS,
    "eos": bpe.EOS,
    "fim_begin": bpe.FIM_BEGIN,
    "fim_hole": bpe.FIM_HOLE,
    "fim_end": bpe.FIM_END,
}


def prepare_texts(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    field: str = "text",
    split_rate: float = 0.0,
    seed: int = 0,
) -> tuple[Shards, DropReport]:
    """Text files and folders -> a shard folder for pre-training, and what was dropped.

    `split_rate` of the tokens that join punctuation with a line break are split (section 4.1).
    """
    report = DropReport()
    documents = deduplicate(read_documents(paths, report, field), report)
    rng = np.random.default_rng(seed)
    encoded = encode((d.text for d in documents), tokenizer)
    if split_rate:
        encoded = ((tokenizer.split_combined(t, split_rate, rng), m) for t, m in encoded)
    return write(out, encoded, tokenizer, report), report


def prepare_chats(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    layout: Layout = "v3",
) -> tuple[Shards, DropReport]:
    """Conversations -> a shard folder for fine-tuning, with masks, and what was dropped."""
    report = DropReport()
    chats = read_conversations(paths, report)
    return write(out, encode(chats, tokenizer, layout=layout), tokenizer, report), report


def encode(
    items: Iterable[str | list[Message]],
    tokenizer: Tokenizer,
    *,
    layout: Layout = "v3",
    masked: bool = True,
) -> Iterator[Encoded]:
    """Tokens and mask of texts and conversations; without `masked`, chats are learned whole."""
    items = iter(items)
    while chunk := list(islice(items, _TOGETHER)):
        texts = iter(tokenizer.encode_batch([item for item in chunk if isinstance(item, str)]))
        for item in chunk:
            if isinstance(item, str):
                yield [tokenizer.bos_token_id, *next(texts), tokenizer.eos_token_id], None
            else:
                tokens, mask = encode_conversation(item, tokenizer, layout)
                yield tokens, mask if masked else None


def write(
    out: str | Path, encoded: Iterable[Encoded], tokenizer: Tokenizer, report: DropReport
) -> Shards:
    """Write encoded documents with what the tokenizer knows."""
    return write_shards(
        out,
        encoded,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        control=control_ids(tokenizer),
        report=report,
    )


def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The control tokens that packing uses, as far as the tokenizer has them."""
    found = {}
    for name, text in _CONTROL.items():
        try:
            found[name] = tokenizer.control(text)
        except DataError:  # a tokenizer without fill-in-the-middle tokens
            continue
    return found
