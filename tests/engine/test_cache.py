"""The cache of many sequences gives each what a list of its own tensors would."""

import random

import torch

from abyssal.batch import Batch
from abyssal.engine import cache as module
from abyssal.engine.cache import SequenceCache


def test_absorbed_passes_over_changing_sequences_equal_one_unfolded_pass_each(model, monkeypatch):
    """Prompts in pieces, decoding and departures, mixed at random, and buffers that must grow."""
    monkeypatch.setattr(module, "BLOCK", 8)
    rng = random.Random(4)
    cache = SequenceCache(model.config, torch.float32, torch.device("cpu"))
    live: list[list[int]] = []  # all tokens of the sequence in each slot
    num_departed = 0
    for _ in range(60):
        if not live or (len(live) < 5 and rng.random() < 0.5):
            assert cache.add() == len(live)
            live.append([])
        new = [[rng.randrange(300) for _ in range(rng.choice([1, 1, 1, 2, 20]))] for _ in live]
        batch = Batch.from_sequences(new)
        offsets = [torch.full((len(n),), len(old)) for n, old in zip(new, live, strict=True)]
        batch = Batch(batch.tokens, batch.positions + torch.cat(offsets), batch.cu_seqlens)
        cache.begin([len(tokens) for tokens in new])
        found = model(batch, cache).hidden
        live = [old + tokens for old, tokens in zip(live, new, strict=True)]
        whole = model(Batch.from_sequences(live)).hidden
        ends = torch.tensor([len(tokens) for tokens in live]).cumsum(0).tolist()
        expected = [whole[end - len(n) : end] for end, n in zip(ends, new, strict=True)]
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-4)
        for slot in reversed(range(len(live))):
            if len(live[slot]) > 60 or rng.random() < 0.1:
                cache.remove(slot)
                last = live.pop()
                if slot < len(live):
                    live[slot] = last
                num_departed += 1
    assert num_departed > 20
    assert cache.buffer.shape[1] == 8  # grown from 1 for five at once, by doubling


def test_the_buffer_is_copied_a_logarithmic_number_of_times(model):
    cache = SequenceCache(model.config, torch.float32, torch.device("cpu"))
    cache.add()
    buffers = set()
    for _ in range(1000):
        cache.begin([1])
        buffers.add(cache.buffer.shape[2])
    assert buffers == {64, 128, 256, 512, 1024}
