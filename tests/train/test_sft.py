"""Fine-tuning: mixtures with a loss for each source, answers learned alone, gates at will."""

from itertools import pairwise

import pytest
import torch

from abyssal.batch import IGNORE
from abyssal.data.shards import Shards
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import history
from abyssal.train.loss import cross_entropy
from abyssal.train.metrics import read_metrics
from abyssal.train.text import TextObjective


def two_sources(course, share=3.0):
    sources = [
        {"name": "talk", "shards": str(course.root / "data" / "talk"), "weight": share},
        {"name": "gossip", "shards": str(course.root / "data" / "gossip"), "weight": 1.0},
    ]
    return {"data": {"sources": sources}}


def moved(before, after):
    pairs = zip(DeepSeekV3.load(before).gates(), DeepSeekV3.load(after).gates(), strict=True)
    return [b.e_score_correction_bias - a.e_score_correction_bias for a, b in pairs]


# Mixtures


def test_the_mixture_keeps_its_shares_and_each_source_has_its_loss(tune, course):
    training = tune("sft", {**two_sources(course), "tokens": 1280})
    rows = list(training.steps())
    assert set(rows[-1].figures) == {"loss/talk", "loss/gossip"}
    for row in rows:
        low, high = sorted(row.figures.values())[0], sorted(row.figures.values())[-1]
        assert low <= row.loss * (1 + 1e-6)
        assert high >= row.loss * (1 - 1e-6)


def test_the_losses_of_sources_are_those_of_their_tokens_alone(tune, course, base):
    run = tune("sft", two_sources(course)).run
    model = DeepSeekV3.load(base)
    objective = TextObjective(run, run.data, model, course.tokenizer)
    for excerpts in objective.draw(4):
        batch = excerpts.batch
        with torch.no_grad():
            output = model(batch)
            found = excerpts.score(output, batch, balance=False)
            for name, brought in excerpts.sources.items():
                alone = batch.labels.where(brought, torch.tensor(IGNORE))
                total = cross_entropy(output.hidden, model.lm_head.weight, alone).item()
                value, count = found.figures[f"loss/{name}"]
                assert value == pytest.approx(total, rel=1e-5, abs=1e-6)
                assert count == int((alone != IGNORE).sum())
        assert sum(v for v, _ in found.figures.values()) == pytest.approx(
            found.main.item(), rel=1e-5
        )
    taken = objective.packer.served
    assert taken["talk"] / taken["gossip"] == pytest.approx(3.0, rel=0.5)


def test_one_source_needs_no_loss_of_its_own(tune):
    assert all(not row.figures for row in tune("sft").steps())


# What is learned


def test_only_what_the_assistant_writes_is_learned_and_conversations_stay_apart(tune, course, base):
    run = tune("sft").run
    objective = TextObjective(run, run.data, DeepSeekV3.load(base), course.tokenizer)
    shards = Shards(course.root / "data" / "talk")
    known = {tuple(shards.tokens(i).tolist()): shards.mask(i) for i in range(len(shards))}
    whole = 0
    for excerpts in objective.draw(6):
        batch = excerpts.batch
        borders = batch.cu_seqlens.tolist()
        for start, end in pairwise(borders):
            tokens, labels = batch.tokens[start:end].tolist(), batch.labels[start:end].tolist()
            assert labels[-1] == IGNORE
            assert batch.positions[start:end].tolist() == list(range(end - start))
            if tuple(tokens) in known:
                whole += 1
                mask = known[tuple(tokens)]
                expected = [t if m else IGNORE for t, m in zip(tokens[1:], mask[1:], strict=True)]
                assert labels[:-1] == expected
    assert whole > 3


# What gates may do


def test_at_gamma_0_the_biases_stay_whatever_the_load(tune, base):
    training = tune("sft", {"balance": {"gamma": [{"until": 1, "to": 0.0}], "alpha": 1e-4}})
    list(training.steps())
    assert not any(change.any() for change in moved(base, training.folder))


def test_at_another_gamma_they_move_by_whole_steps_of_it(tune, base):
    training = tune("sft", {"balance": {"gamma": [{"until": 1, "to": 0.01}]}})
    list(training.steps())
    (change,) = moved(base, training.folder)
    assert change.any()
    assert torch.all((change / 0.01).round(decimals=2) % 1 == 0)


def test_the_sequence_loss_is_there_or_not(tune, look):
    with_loss = tune("sft", {"balance": {"alpha": 1.0}}, out="with")
    without = tune("sft", {"balance": {"alpha": 0.0}}, out="without")
    assert all(row.balance_loss > 0 for row in with_loss.steps())
    assert all(row.balance_loss == 0 for row in without.steps())
    assert look(with_loss.folder).weights != look(without.folder).weights


def test_the_held_out_text_is_scored_before_the_first_step(tune):
    training = tune("sft")
    list(training.steps())
    found = read_metrics(training.folder).evaluations
    assert found[0].step == 0
    assert isinstance(found[0], history.Evaluation)
