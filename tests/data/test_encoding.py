"""Documents to tokens and on through shards and batches: what was written can be read again."""

from itertools import pairwise
from pathlib import Path

import pytest

from abyssal.data.documents import Document
from abyssal.data.encoding import control_tokens, encode_documents
from abyssal.data.packing import Packer
from abyssal.data.shards import write_shards
from abyssal.data.sources import Source
from abyssal.tokenizer.bpe import Tokenizer

STORIES = [
    f"Fish number {n} swam away.\n\nIt met a crab, and crab {n} said hello." for n in range(9)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small real one."""
    return Tokenizer.train(STORIES * 3, 1000)


def test_a_document_is_its_tokens_between_bos_and_eos(tokenizer: Tokenizer):
    documents = (Document(story, "here") for story in STORIES)
    encoded = list(encode_documents(documents, tokenizer))
    assert [tokens for tokens, _ in encoded] == [
        tokenizer.encode(story, bos=True, eos=True) for story in STORIES
    ]
    assert all(mask is None for _, mask in encoded)


def test_splitting_joined_tokens_keeps_the_text(tokenizer: Tokenizer):
    documents = [Document(story, "here") for story in STORIES]
    plain = [tokens for tokens, _ in encode_documents(documents, tokenizer)]
    split = [tokens for tokens, _ in encode_documents(documents, tokenizer, split_rate=1.0)]
    assert [tokenizer.decode(tokens) for tokens in split] == STORIES
    assert all(len(b) > len(a) for a, b in zip(plain, split, strict=True))


def test_text_comes_back_out_of_the_batches(tokenizer: Tokenizer, tmp_path: Path):
    shards = write_shards(
        tmp_path / "s",
        encode_documents([Document(story, "here") for story in STORIES], tokenizer),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        control=control_tokens(tokenizer),
    )
    pack = Packer(
        [Source(shards, 1.0, "fish")],
        tokens_per_batch=400,
        seq_len=100,
        isolate=True,
        fim_rate=0.3,
        seed=0,
    )
    found = set()
    for _ in range(10):
        batch = pack.next_batch()
        for start, end in pairwise(batch.cu_seqlens.tolist()):
            found.add(tokenizer.decode(batch.tokens[start:end].tolist()))
    assert set(STORIES) <= found
