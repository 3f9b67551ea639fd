"""Drafts change how many passes an answer takes, and neither its tokens nor their distribution."""

from collections import Counter

import pytest
import torch

from abyssal.batch import Batch
from abyssal.engine.engine import Engine, EngineOptions
from abyssal.engine.request import Request, SamplingParams

PROMPT = "the deep sea is"
KEPT = 6  # top_k: pairs of tokens that can be drawn are 36
ANSWERS = 50_000  # whose first two tokens are looked at; a third makes the second a draft


def shares(model, tokens: list[int]) -> torch.Tensor:
    """How likely each token follows these, with top_k = KEPT."""
    logits = model.logits(Batch.from_sequences([tokens]))[-1] / 3  # flat enough to be missed often
    best = logits.topk(KEPT)
    return torch.zeros_like(logits).scatter(0, best.indices, best.values.softmax(-1))


@pytest.mark.slow
@torch.inference_mode()
def test_a_hundred_thousand_sampled_tokens_are_distributed_as_the_model_says(taught, tokenizer):
    engine = Engine(taught, tokenizer, EngineOptions(draft=1, max_running=500))
    prompt = tokenizer.encode(PROMPT, bos=True)
    params = [
        SamplingParams(max_tokens=3, temperature=3.0, top_k=KEPT, seed=seed, ignore_eos=True)
        for seed in range(ANSWERS)
    ]
    written: dict[int, list[int]] = {}
    for i, values in enumerate(params):
        engine.add(Request(id=i, tokens=prompt, params=values))
        written[i] = []
    while not engine.is_idle:
        for delta in engine.step():
            written[delta.request_id].append(delta.token)
    stats = engine.stats()
    assert stats.drafted == [ANSWERS]
    assert 0.2 < stats.accepted[0] / ANSWERS < 0.9  # both what was right and what was not
    pairs = Counter(tuple(tokens[:2]) for tokens in written.values())
    first = shares(taught, prompt)
    chi_square, cells = 0.0, 0
    for token in first.nonzero()[:, 0].tolist():
        second = first[token] * shares(taught, [*prompt, token])
        for other in second.nonzero()[:, 0].tolist():
            expected = float(second[other]) * ANSWERS
            chi_square += (pairs[token, other] - expected) ** 2 / expected
            cells += 1
    assert cells == len(pairs) == KEPT**2
    assert chi_square < 75  # 35 degrees of freedom: p < 0.0001
