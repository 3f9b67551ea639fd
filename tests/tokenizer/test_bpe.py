"""Text to tokens and back: nothing is lost, and nothing in a text becomes a control token."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from abyssal.errors import ConfigError, DataError
from abyssal.tokenizer import bpe
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.control import CLOSING, OPENING
from abyssal.tokenizer.release import blank_file

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden.json").read_text("utf-8"))
CONTROL = [*OPENING, *CLOSING]
FRAGMENTS = [
    *CONTROL,
    *(text[:cut] for text in CONTROL for cut in (1, 2, len(text) // 2, len(text) - 1)),
    *(text[cut:] for text in CONTROL for cut in (1, len(text) // 2, len(text) - 1)),
    *("<", "|", ">", "</", "\uff5c", "\u2581", " ", "\n", "think", "User", "a", "1", "\u4ece"),
]

property_test = settings(max_examples=100)


def control_like_text(rng: random.Random) -> str:
    return "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 8)))


@pytest.fixture(scope="module")
def library(published_path):
    """The published file in the library that defines it, control tokens and all."""
    return tokenizers.Tokenizer.from_file(str(published_path))


@pytest.mark.parametrize("case", [case for case in GOLDEN if "text" in case])
def test_the_published_tokenizer_gives_the_golden_ids(published, case):
    assert published.encode(case["text"]) == case["ids"]


def test_our_file_has_the_structure_of_the_release(published_path):
    release = json.loads(published_path.read_text("utf-8"))
    ours = blank_file()
    for content in (release, ours):
        content["added_tokens"] = []
        content["model"]["vocab"], content["model"]["merges"] = {}, []
    assert ours == release


def test_our_control_tokens_are_those_of_the_release(published_path, tiny):
    release = json.loads(published_path.read_text("utf-8"))["added_tokens"]
    released = {token["content"]: token for token in release}
    ours = {token["content"]: token for token in tiny._file["added_tokens"]}
    known = [text for text in CONTROL if text in released]  # R1 has no search tokens yet
    assert len(known) == len(CONTROL) - 2
    assert sorted(known, key=lambda text: released[text]["id"]) == known
    assert [ours[text] | {"id": 0} for text in known] == [
        released[text] | {"id": 0} for text in known
    ]


@property_test
@given(text=st.text())
def test_decoding_undoes_encoding(tiny, published, text):
    for tokenizer in (tiny, published):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode_bytes(tokenizer.encode(text, bos=True, eos=True)) == text.encode()


@property_test
@given(content=st.binary(max_size=64))
def test_any_bytes_have_tokens(tiny, content):
    token_of = {tiny.decode_bytes([token]): token for token in range(3, 3 + 256)}
    assert len(token_of) == 256
    assert tiny.decode_bytes([token_of[bytes([byte])] for byte in content]) == content
    as_text = content.decode("latin-1")
    assert tiny.decode(tiny.encode(as_text)) == as_text


@property_test
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<\uff5c")), max_size=4)
)
def test_without_control_tokens_the_library_gives_the_same_ids(published, library, texts):
    expected = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert published.encode_batch(texts) == expected
    assert [published.encode(text) for text in texts] == expected


def test_no_text_becomes_a_control_token(tiny, published):
    rng = random.Random(0)
    texts = CONTROL + [control_like_text(rng) for _ in range(10_000)]
    for tokenizer in (tiny, published):
        for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
            assert tokenizer.control_ids.isdisjoint(tokens), text
            assert tokenizer.decode(tokens) == text


@property_test
@given(data=st.data())
def test_decoding_agrees_with_the_library_on_any_tokens(published, library, data):
    tokens = data.draw(st.lists(st.integers(0, published.vocab_size - 1)))
    assert published.decode(tokens, skip_control=False) == library.decode(
        tokens, skip_special_tokens=False
    )


def test_control_tokens_are_left_out_unless_asked_for(tiny):
    tokens = [*tiny.encode("a", bos=True, eos=True), tiny.control(bpe.USER)]
    assert tokens[0] == tiny.bos_token_id == 0
    assert tokens[2] == tiny.eos_token_id == 1
    assert tiny.decode(tokens) == "a"
    assert tiny.decode(tokens, skip_control=False) == bpe.BOS + "a" + bpe.EOS + bpe.USER


def test_ids_outside_the_vocabulary_are_refused(tiny):
    for token in (-1, tiny.vocab_size):
        with pytest.raises(DataError, match=f"token {token} is not in the vocabulary of 400"):
            tiny.decode([token])


def test_a_lone_surrogate_is_refused(tiny):
    with pytest.raises(DataError, match="surrogate"):
        tiny.encode("half of a pair: \ud83d")
    with pytest.raises(DataError, match="surrogate"):
        Tokenizer.train(["\ud83d"], 400)


@pytest.mark.parametrize("vocab_size", [278, 400, 4096])
def test_a_vocabulary_has_exactly_the_size_asked_for(texts, vocab_size):
    tokenizer = Tokenizer.train(texts, vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert [tokenizer.control(text) for text in OPENING] == [0, 1, 2]
    assert [tokenizer.control(text) for text in CLOSING] == [*range(vocab_size - 19, vocab_size)]
    every_id = range(vocab_size)
    assert all(tokenizer.decode_bytes([token], skip_control=False) for token in every_id)


def test_placeholders_fill_what_the_texts_cannot(caplog):
    tokenizer = Tokenizer.train(["abab abab"], 400)
    assert "place-holders" in caplog.text
    assert tokenizer.control("<\uff5cplace\u2581holder\u2581no\u25810\uff5c>") > 258
    assert tokenizer.vocab_size == 400


def test_a_vocabulary_without_room_for_the_bytes_is_refused(texts):
    with pytest.raises(ConfigError, match=r"vocab_size=277.* need 278"):
        Tokenizer.train(texts, 277)


def test_training_again_gives_the_same_tokenizer(texts, tiny):
    program = (
        "import json, sys; from abyssal.tokenizer.bpe import Tokenizer;"
        "sys.stdout.write(Tokenizer.train(json.load(sys.stdin), 400).sha256)"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(texts),
        env=os.environ | {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "1"},
        cwd=Path(bpe.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout == tiny.sha256
    assert Tokenizer.train(iter(texts), 400).sha256 == tiny.sha256
    assert Tokenizer.train(texts, 390).sha256 != tiny.sha256


def test_training_makes_text_shorter(texts, tiny):
    assert len(tiny.encode(texts[0])) < len(texts[0].encode()) / 1.5


def test_an_unknown_control_token_is_refused(tiny):
    with pytest.raises(DataError, match="<nobody>"):
        tiny.control("<nobody>")


class TestSplittingCombinedTokens:
    """Tokens such as ".\\n" join a sign and a line break; a share of them is taken apart."""

    @property_test
    @given(rate=st.floats(0, 1), seed=st.integers(0, 99))
    def test_the_text_stays_the_same(self, tiny, texts, rate, seed):
        tokens = tiny.encode(texts[0] + texts[1], bos=True, eos=True)
        split = tiny.split_combined(tokens, rate, np.random.default_rng(seed))
        assert tiny.decode(split, skip_control=False) == tiny.decode(tokens, skip_control=False)
        assert split == tiny.split_combined(tokens, rate, np.random.default_rng(seed))

    def test_rate_zero_changes_nothing_and_rate_one_leaves_none(self, published):
        rng = np.random.default_rng(0)
        tokens = published.encode("One.\nTwo!\n\nThree\n", eos=True)
        assert published.split_combined(tokens, 0.0, rng) == tokens
        split = published.split_combined(tokens, 1.0, rng)
        parts = [published.decode([token], skip_control=False) for token in split]
        assert parts == ["One", ".", "\n", "Two", "!", "\n\n", "Three", "\n", bpe.EOS]

    def test_the_share_is_as_asked(self, published):
        tokens = published.encode("a.\n" * 4000)
        split = published.split_combined(tokens, 0.3, np.random.default_rng(0))
        assert len(split) - len(tokens) == pytest.approx(0.3 * 4000, rel=0.1)

    @pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
    def test_a_rate_that_is_no_share_is_refused(self, tiny, rate):
        with pytest.raises(ConfigError, match="rate="):
            tiny.split_combined([5], rate, np.random.default_rng(0))
