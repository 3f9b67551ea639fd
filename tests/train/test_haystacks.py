"""Long texts with a key in them: what they hold, what no examination asks for, their recipes."""

import re

import numpy as np
import pytest

from abyssal import recipe
from abyssal.data import corpus
from abyssal.data.shards import Shards
from abyssal.evals import needle
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import haystacks
from abyssal.train.haystacks import Haystack, Mixture
from abyssal.train.pretrain import Pretrain
from abyssal.train.training import _unfold_preset

STORIES = corpus.stories("train")[:200]
SMALL = Mixture(hidden=60, echoes=15)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([re.sub(r"\d", "", story) for story in STORIES], 400)


@pytest.fixture(scope="module")
def haystack(tokenizer):
    return Haystack(STORIES, tokenizer)


def texts_of(haystack, mixture, longest, seed=1):
    documents = list(haystack.documents(mixture, longest, seed))
    return [haystack.tokenizer.decode(tokens[1:-1]) for tokens, _ in documents]


def test_the_key_stands_where_it_is_hidden_and_where_it_is_told(haystack):
    depths = []
    for text in texts_of(haystack, Mixture(200, 0), 512):
        (key,) = re.findall(r"The pass key is (\d{5})\. Remember", text)
        assert text.startswith(needle.OPENING)
        assert text.endswith(f"{needle.QUESTION} {key}.")
        assert text.count(needle.NEEDLE.format(key=key)) == 1
        assert text.count(key) == 3
        body = text[len(needle.OPENING) : text.index(needle.QUESTION)]
        if (room := len(body) - len(needle.NEEDLE.format(key=key))) > 400:
            depths.append(body.index(" The pass key is") / room)
    assert len(depths) > 10
    assert min(depths) < 0.3
    assert max(depths) > 0.7


def test_what_was_said_before_is_learned_and_nothing_else(haystack):
    rng = np.random.default_rng(1)
    parts = haystack.hidden(300, rng)
    learned = [haystack.tokenizer.decode(tokens) for tokens, learns in parts if learns]
    assert learned[1] == f" {learned[0]}."
    for length in (90, 500):
        (once, known), (again, learns) = haystack.echo(length, rng)
        assert (known, learns) == (False, True)
        assert again == once * (len(again) // len(once))
        assert length - len(once) < len(once + again) <= length


def test_a_text_made_of_parts_is_read_as_one(haystack):
    for tokens, _ in haystack.documents(Mixture(20, 0), 512, 1):
        assert haystack.tokenizer.encode(haystack.tokenizer.decode(tokens[1:-1])) == tokens[1:-1]


def test_learning_begins_where_the_writing_of_an_examination_does(haystack):
    """The space before the key, too: whoever has not learned it writes another word first."""
    for tokens, mask in haystack.documents(Mixture(20, 0), 512, 1):
        end = len(tokens) - 1  # EOS
        start = end - mask[:end][::-1].index(False)
        question = haystack.tokenizer.decode(tokens[1:start])
        answer = haystack.tokenizer.decode(tokens[start:end])
        assert question.endswith(needle.QUESTION)
        assert answer.startswith(" ")
        assert haystack.tokenizer.encode(question) == tokens[1:start]


def test_no_key_of_an_examination_is_in_a_text_to_learn_from(haystack):
    read = set(re.findall(r"\b\d{5}\b", "".join(texts_of(haystack, SMALL, 512))))
    items = needle._items(needle.Search(lengths=(512,)))
    assert len(read) > 40
    assert not read & {key for item in items for key in item.data["keys"]}
    assert not any(needle.is_held_out(int(key)) for key in read)
    assert all(needle.is_held_out(int(key)) for key in needle.NUMBERS)


def test_documents_are_as_long_as_they_may_be_and_no_longer(haystack):
    documents = list(haystack.documents(SMALL, 512, 1))
    lengths = [len(tokens) for tokens, _ in documents]
    assert len(documents) == sum(SMALL)
    assert max(lengths) <= 512
    assert max(lengths) > 350
    assert [len(mask) for _, mask in documents] == lengths


def test_equal_seeds_give_equal_texts(haystack):
    first, again, other = (list(haystack.documents(SMALL, 256, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_what_was_prepared_stays_and_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(haystacks, "STORIES", 200)
    monkeypatch.setattr(haystacks, "MIXTURES", dict.fromkeys(haystacks.LENGTHS, SMALL))
    said = haystacks.prepare(tmp_path)
    assert [next(said) for _ in range(3)][-1] == "writing 2k"  # and no further
    said.close()
    assert list(haystacks.prepare(tmp_path)) == ["writing 2k", "writing 8k"]
    assert len(Shards(tmp_path / "data" / "8k")) == sum(SMALL)


def settings(name):
    return recipe.fill(Pretrain, _unfold_preset(recipe.load(name), name), name)


def test_each_phase_goes_on_from_the_one_before_and_reads_as_far_as_it_may():
    before = settings("long/base")
    assert before.batch.seq_len == before.model.max_position_embeddings == 512
    for name in ("long/extend-2k", "long/extend-8k"):
        run = settings(name)
        scaling = run.model.rope_scaling
        assert run.init == before.out
        assert run.batch.seq_len == run.model.max_position_embeddings
        assert run.batch.seq_len == scaling.factor * scaling.original_max_position_embeddings
        assert scaling.original_max_position_embeddings == 512
        assert run.batch.seq_len == 4 * before.batch.seq_len
        before = run
