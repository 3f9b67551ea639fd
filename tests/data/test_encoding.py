"""Documents to tokens and on through shards and batches: what was written can be read again."""

from itertools import pairwise
from pathlib import Path

import pytest

from abyssal.data.encoding import control_tokens, encode
from abyssal.data.packing import Packer
from abyssal.data.shards import write_shards
from abyssal.data.sources import Source
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message

STORIES = [
    f"Fish number {n} swam away.\n\nIt met a crab, and crab {n} said hello." for n in range(9)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small real one."""
    return Tokenizer.train(STORIES * 3, 1000)


def test_a_document_is_its_tokens_between_bos_and_eos(tokenizer: Tokenizer):
    encoded = list(encode(STORIES, tokenizer))
    assert [tokens for tokens, _ in encoded] == [
        tokenizer.encode(story, bos=True, eos=True) for story in STORIES
    ]
    assert all(mask is None for _, mask in encoded)


def test_splitting_joined_tokens_keeps_the_text(tokenizer: Tokenizer):
    plain = [tokens for tokens, _ in encode(STORIES, tokenizer)]
    split = [tokens for tokens, _ in encode(STORIES, tokenizer, split_rate=1.0)]
    assert [tokenizer.decode(tokens) for tokens in split] == STORIES
    assert all(len(b) > len(a) for a, b in zip(plain, split, strict=True))


def test_text_comes_back_out_of_the_batches(tokenizer: Tokenizer, tmp_path: Path):
    shards = write_shards(
        tmp_path / "s",
        encode(STORIES, tokenizer),
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


def test_texts_and_conversations_keep_their_order_and_only_chats_have_masks(tokenizer: Tokenizer):
    chat = [Message("user", "Who swam?"), Message("assistant", "A fish.")]
    (first, none), (second, mask) = encode([STORIES[0], chat], tokenizer)
    assert none is None
    assert first == tokenizer.encode(STORIES[0], bos=True, eos=True)
    assert mask is not None
    assert len(mask) == len(second)
    answer = [token for token, learned in zip(second, mask, strict=True) if learned]
    assert answer == tokenizer.encode("A fish.", eos=True)
    assert [m for _, m in encode([chat], tokenizer, masked=False)] == [None]
