"""Text files and chats to shards: read, clean, drop duplicates, encode, write.

What was dropped, and why, stands in the shards' meta.json and is handed back.
"""

from collections.abc import Sequence
from pathlib import Path

from abyssal.data.conversations import read_conversations
from abyssal.data.documents import DropReport, deduplicate, read_documents
from abyssal.data.encoding import encode, write_encoded
from abyssal.data.shards import Shards
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Layout


def prepare_texts(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    field: str = "text",
    split_rate: float = 0.0,
    seed: int = 0,
) -> tuple[Shards, DropReport]:
    """Text files and folders -> a shard folder for pre-training, and what was dropped."""
    report = DropReport()
    documents = deduplicate(read_documents(paths, report, field), report)
    texts = (document.text for document in documents)
    encoded = encode(texts, tokenizer, split_rate=split_rate, seed=seed)
    return write_encoded(out, encoded, tokenizer, report), report


def prepare_chats(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    layout: Layout = "v3",
) -> tuple[Shards, DropReport]:
    """Conversations -> a shard folder for fine-tuning, with masks, and what was dropped."""
    report = DropReport()
    encoded = encode(read_conversations(paths, report), tokenizer, layout=layout)
    return write_encoded(out, encoded, tokenizer, report), report
