"""Bits per byte: how well a model predicts text, comparable across tokenizers.

    bits per byte = - sum over tokens of log2 p(token | tokens before) / bytes of the text in UTF-8

BOS stands before each document as its only context; EOS is not scored. A document longer than the
context is read in windows that begin half a context apart: each token is scored once, and all but
those of the first window see at least half a context before them.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from abyssal.data.documents import DropReport, read_documents
from abyssal.engine.llm import LLM
from abyssal.engine.scoring import logprobs
from abyssal.errors import DataError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

CHUNK = 256  # documents encoded and scored together


@dataclass(frozen=True, kw_only=True, slots=True)
class BitsPerByte:
    """What predicting some text cost."""

    bits_per_byte: float
    bits: float
    bytes: int
    tokens: int  # scored; BOS is not
    documents: int

    @property
    def perplexity(self) -> float:
        """The same per token: 2 to the mean number of bits. Depends on the tokenizer."""
        return math.exp2(self.bits / self.tokens)


class Window(NamedTuple):
    """A stretch of a document, and where its new tokens begin."""

    tokens: Sequence[int]
    first: int  # tokens[first:] are scored here; those before are context


def bits_per_byte(
    model: LLM | DeepSeekV3, tokenizer: Tokenizer, texts: Iterable[str]
) -> BitsPerByte:
    """The bits per byte of a model on texts, each a document of its own.

    Raises:
        DataError: there is no byte to predict.
    """
    network = model.model if isinstance(model, LLM) else model
    nats, num_bytes, tokens, documents = 0.0, 0, 0, 0
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, CHUNK)):
        nats_here, tokens_here = _score(network, tokenizer, chunk)
        nats += nats_here
        tokens += tokens_here
        num_bytes += sum(len(text.encode()) for text in chunk)
        documents += len(chunk)
    if not num_bytes:
        raise DataError(f"no text in {documents} documents; give at least one that is not empty")
    bits = nats / math.log(2)
    return BitsPerByte(
        bits_per_byte=bits / num_bytes,
        bits=bits,
        bytes=num_bytes,
        tokens=tokens,
        documents=documents,
    )


def bits_per_byte_of_file(llm: LLM, path: str | Path) -> tuple[BitsPerByte, DropReport]:
    """The same for the documents of a .txt or .jsonl file, plain or packed, and what was left out.

    A .txt file is one document; a .jsonl file holds one per row, under `text`.

    Raises:
        DataError: the file cannot be read, or holds no text.
    """
    report = DropReport()
    texts = (document.text for document in read_documents(path, report))
    return bits_per_byte(llm, llm.tokenizer, texts), report


def windows(tokens: Sequence[int], context: int) -> Iterator[Window]:
    """Stretches of at most `context` tokens that together score each of tokens[1:] once."""
    yield Window(tokens[:context], 1)
    stride = context // 2
    for scored in range(context, len(tokens), stride):
        start = scored - (context - stride)
        yield Window(tokens[start : scored + stride], context - stride)


def _score(model: DeepSeekV3, tokenizer: Tokenizer, texts: list[str]) -> tuple[float, int]:
    """Minus the log-probability of the texts, and how many tokens they have."""
    context = model.config.max_position_embeddings
    stretches = [
        window
        for tokens in tokenizer.encode_batch(texts)
        for window in windows([tokenizer.bos_token_id, *tokens], context)
    ]
    scored = logprobs(model, [window.tokens for window in stretches])
    new = [
        logprob
        for window, row in zip(stretches, scored, strict=True)
        for logprob in row[window.first - 1 :]
    ]
    return -math.fsum(new), len(new)
