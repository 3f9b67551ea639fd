"""Bad words are never in an answer, however it is cut into tokens."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.engine.bad_words import BadWords
from abyssal.tokenizer.bpe import Tokenizer

TEXT = "the deep sea is dark and the fish in the deep sea see the dark 深海 是 黑暗 的 🐟 🌊\n"


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text)


words = st.one_of(
    st.sampled_from(["the", "deep sea", " dark", "a", "ee", "sesea", "海 是", "🐟", "\n", "aaab"]),
    st.text(alphabet="the dapsiフ", min_size=2, max_size=4),
)


@settings(max_examples=150)
@given(texts=st.lists(words, max_size=3), data=st.data())
def test_exactly_those_tokens_are_banned_that_would_complete_a_bad_word(tokenizer, texts, data):
    begun = st.sampled_from([text.encode()[:cut] for text in texts for cut in range(9)] or [b""])
    ends = [
        *data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4)),
        *ids(tokenizer, data.draw(st.sampled_from(["", " ", "the", "see the deep "]))),
        *(tokenizer.spelled.index(bytes([byte])) for byte in data.draw(begun)),
    ]
    bad = BadWords(tokenizer, texts)
    for written in (ends, ends[:-1], []):
        before = tokenizer.decode_bytes(written)
        expected = {
            token
            for token, spelled in enumerate(tokenizer.spelled)
            if token not in tokenizer.control_ids
            and any(completes(before, spelled, text.encode()) for text in texts)
        }
        assert set(bad.banned(written)) == expected


def completes(before: bytes, token: bytes, word: bytes) -> bool:
    """Whether a new occurrence of word ends inside of token."""
    return word in (before[-(len(word) - 1) :] if len(word) > 1 else b"") + token


def test_a_random_writer_never_writes_a_bad_word(tokenizer):
    rng = np.random.default_rng(1)
    texts = ["the", "sea ", "深海", "da", "🌊"]
    bad, written = BadWords(tokenizer, texts), []
    liked = ids(tokenizer, TEXT)
    for _ in range(3000):
        left = [t for t in liked if t not in set(bad.banned(written))]
        written.append(int(rng.choice(left)))
    text = tokenizer.decode(written)
    assert not any(word in text for word in texts)
    assert len(set(written)) > 10


def test_encodings_with_and_without_a_space_are_banned_and_control_tokens_never(tokenizer):
    bad = BadWords(tokenizer, ["the", "think"])
    for text in ("the", " the"):
        *begun, last = ids(tokenizer, text)
        assert last in bad.banned(begun)
    for text in ("think", " think"):
        *begun, last = ids(tokenizer, text)
        assert last in bad.banned(begun)
        assert begun
        assert last not in bad.banned([])
    assert not tokenizer.control_ids & set(bad.banned([]))


def test_control_tokens_neither_spell_nor_part_a_bad_word(tokenizer):
    s, e, a = (ids(tokenizer, letter)[0] for letter in "sea")
    bad = BadWords(tokenizer, ["sea"])
    control = [tokenizer.control("<think>")] * 5
    assert a in bad.banned([s, *control, e, *control])
    assert bad.banned(control) == bad.banned([])


def test_no_bad_words_ban_nothing(tokenizer):
    assert BadWords(tokenizer, []).banned(ids(tokenizer, TEXT)) == []
