"""Scores are the model's own log-probabilities, whoever shares the pass."""

import pytest
import torch

from abyssal.batch import Batch
from abyssal.engine import scoring
from abyssal.errors import RequestError


def test_a_score_is_the_log_softmax_of_the_logits_at_the_next_token(llm):
    tokens = torch.randint(340, (40,)).tolist()
    logits = llm.model.logits(Batch.from_sequences([tokens])).log_softmax(-1)
    expected = [logits[i, token].item() for i, token in enumerate(tokens[1:])]
    assert llm.score([tokens])[0] == pytest.approx(expected, abs=1e-5)


def test_many_sequences_in_small_passes_score_as_each_alone(llm, monkeypatch):
    lists = [torch.randint(340, (length,)).tolist() for length in (7, 1, 30, 2, 96, 12, 30)]
    alone = [llm.score([tokens])[0] for tokens in lists]
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 50)
    monkeypatch.setattr(scoring, "HEAD_NUMBERS", 340 * 9)
    together = llm.score(lists)
    assert [len(row) for row in together] == [len(tokens) - 1 for tokens in lists]
    for a, b in zip(alone, together, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert llm.score([]) == []


@pytest.mark.parametrize(
    ("tokens", "word"), [([], "0 tokens"), ([5] * 97, "97 tokens.*96"), ([3, 340], "token 340")]
)
def test_what_cannot_be_scored_is_refused_with_its_numbers(llm, tokens, word):
    with pytest.raises(RequestError, match=word):
        llm.score([[1, 2], tokens])
