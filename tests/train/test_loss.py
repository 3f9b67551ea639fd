"""The losses, held to torch's cross-entropy and to plain loops over the paper's equations."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from abyssal.batch import IGNORE, Batch
from abyssal.config import ModelConfig
from abyssal.model.moe import Routing
from abyssal.model.transformer import DeepSeekV3
from abyssal.train import loss
from abyssal.train.loss import cross_entropy, labels_ahead, losses, sequence_balance

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def example(rows, ignored, seed=0, hidden_size=5, vocab=11, scale=1.0):
    """hidden (T, D), head (W, D) and labels (T,), of which the given share is ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=generator) * scale
    head = torch.randn(vocab, hidden_size, generator=generator)
    labels = torch.randint(vocab, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = IGNORE
    return hidden.requires_grad_(), head.requires_grad_(), labels


def torchs(hidden, head, labels):
    return F.cross_entropy(hidden @ head.T, labels, ignore_index=IGNORE, reduction="sum")


def assert_same_loss(hidden, head, labels, **tolerance):
    ours, theirs = cross_entropy(hidden, head, labels), torchs(hidden, head, labels)
    torch.testing.assert_close(ours, theirs, **tolerance)
    found = torch.autograd.grad(ours * 0.7, (hidden, head))
    expected = torch.autograd.grad(theirs * 0.7, (hidden, head))
    torch.testing.assert_close(found, expected, **tolerance)


# Cross-entropy


@given(st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.integers(0, 9))
def test_cross_entropy_and_its_gradients_are_torchs_whatever_the_chunk_borders(rows, ignored, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_rows_at_a_time", lambda head: 8)
        assert_same_loss(*example(rows, ignored, seed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [255, 256, 257, 519])
@pytest.mark.parametrize("ignored", [0.0, 0.6])
def test_so_it_is_at_the_borders_of_large_chunks(rows, ignored, monkeypatch):
    monkeypatch.setattr(loss, "_rows_at_a_time", lambda head: 256)
    assert_same_loss(*example(rows, ignored), rtol=1e-4, atol=1e-4)


def test_the_rows_of_a_chunk_follow_the_vocabulary():
    assert loss._rows_at_a_time(torch.empty(4096, 1)) == 2048
    assert loss._rows_at_a_time(torch.empty(129280, 1)) == 64


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_so_it_is_where_logits_are_tiny_or_huge(scale):
    assert_same_loss(*example(20, 0.2, scale=scale), rtol=1e-4, atol=1e-4)


def test_in_bfloat16_it_is_close():
    hidden, head, labels = example(64, 0.3, hidden_size=32, vocab=50)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, head)]
    total = cross_entropy(*low, labels)
    exact = torchs(*[x.float() for x in low], labels)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=0.01)
    found = torch.autograd.grad(total, low)
    expected = torch.autograd.grad(exact, low)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).float().norm() < 0.02 * b.float().norm()


@pytest.mark.parametrize("chunk", [4, 512])
def test_ignored_rows_contribute_nothing(chunk, monkeypatch):
    monkeypatch.setattr(loss, "_rows_at_a_time", lambda head: chunk)
    hidden, head, labels = example(30, 0.5)
    scored = labels != IGNORE
    wild = torch.where(scored[:, None], hidden, 1e6 * torch.ones_like(hidden)).detach()
    results = []
    for rows, words in ((wild.requires_grad_(), labels), (hidden[scored], labels[scored])):
        total = cross_entropy(rows, head, words)
        results.append((total, *torch.autograd.grad(total, (rows, head))))
    assert not results[0][1][~scored].any()
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1][scored], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2])


def test_where_all_rows_are_ignored_loss_and_gradients_are_zero():
    hidden, head, labels = example(7, 1.0)
    total = cross_entropy(hidden, head, labels)
    assert total.item() == 0.0
    assert not any(grad.any() for grad in torch.autograd.grad(total, (hidden, head)))


def test_without_gradients_the_loss_is_the_same():
    hidden, head, labels = example(20, 0.2)
    with torch.no_grad():
        assert cross_entropy(hidden, head, labels) == cross_entropy(
            hidden.detach(), head.detach(), labels
        )
    torch.testing.assert_close(
        cross_entropy(hidden.detach(), head.detach(), labels), torchs(hidden, head, labels).detach()
    )


# Tokens further ahead


@given(LENGTHS, st.integers(1, 4))
def test_labels_ahead_never_cross_from_one_sequence_to_the_next(lengths, depth):
    labels = torch.arange(sum(lengths)) + 100
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    expected = []
    for start, end in pairwise(cu_seqlens.tolist()):
        row = labels[start:end].tolist()
        kept = row[depth:]
        expected += kept + [IGNORE] * (len(row) - len(kept))
    assert labels_ahead(labels, cu_seqlens, depth).tolist() == expected
    assert labels.tolist() == [100 + i for i in range(sum(lengths))]  # the argument stays as it was


def test_ignored_labels_stay_ignored_further_ahead():
    labels = torch.tensor([1, IGNORE, 3, 4, IGNORE])
    found = labels_ahead(labels, torch.tensor([0, 5]), 1)
    assert found.tolist() == [IGNORE, 3, 4, IGNORE, IGNORE]


# Balance within a sequence


def routing_of(affinity, top_k):
    experts = affinity.detach().topk(top_k).indices
    return Routing(experts, torch.ones(experts.shape), affinity)


def equations_17_to_20(affinity, lengths, top_k):
    """As printed, in loops; f is a number, P a tensor with a gradient."""
    terms = []
    for s in affinity.split(lengths):
        T, E = s.shape
        total = torch.zeros(())
        for i in range(E):
            chosen = sum(i in row.topk(top_k).indices.tolist() for row in s.detach())
            f = E / (top_k * T) * chosen  # eq. 18
            P = sum(row[i] / row.sum() for row in s) / T  # eq. 19, 20
            total = total + f * P
        terms.append(total)
    return sum(terms) / len(terms)


@given(LENGTHS, st.integers(1, 3), st.integers(0, 99))
def test_the_balance_term_is_the_papers_with_a_gradient_through_P_only(lengths, top_k, seed):
    generator = torch.Generator().manual_seed(seed)
    affinity = torch.rand(sum(lengths), 5, generator=generator).requires_grad_()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    ours = sequence_balance(routing_of(affinity, top_k), cu_seqlens, top_k)
    theirs = equations_17_to_20(affinity, lengths, top_k)
    torch.testing.assert_close(ours, theirs)
    (found,) = torch.autograd.grad(ours, affinity)
    (expected,) = torch.autograd.grad(theirs, affinity)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_balance_term_is_1_where_experts_are_used_evenly_and_more_where_not():
    row = torch.tensor([0.9, 0.8, 0.2, 0.1])
    even = torch.stack([row.roll(i) for i in range(4)])
    cu_seqlens = torch.tensor([0, 4])
    assert sequence_balance(routing_of(even, 2), cu_seqlens, 2).item() == pytest.approx(1.0)
    crowded = sequence_balance(routing_of(row.expand(4, 4), 2), cu_seqlens, 2)
    assert crowded.item() == pytest.approx(2 * (0.9 + 0.8) / 2.0)


def test_balance_holds_within_each_sequence_not_over_the_batch():
    """Two sequences that each crowd other experts are even together, and still cost."""
    row = torch.tensor([0.9, 0.8, 0.2, 0.1])
    affinity = torch.cat([row.expand(4, 4), row.flip(0).expand(4, 4)])
    apart = sequence_balance(routing_of(affinity, 2), torch.tensor([0, 4, 8]), 2)
    together = sequence_balance(routing_of(affinity, 2), torch.tensor([0, 8]), 2)
    assert together.item() == pytest.approx(1.0)
    assert apart.item() > 1.5


def test_the_balance_term_does_not_see_whom_the_bias_chose():
    affinity = torch.rand(6, 4)
    routing = routing_of(affinity, 2)
    steered = routing._replace(experts=affinity.topk(2, largest=False).indices)
    cu_seqlens = torch.tensor([0, 6])
    assert sequence_balance(steered, cu_seqlens, 2) == sequence_balance(routing, cu_seqlens, 2)


# All together


@pytest.fixture(scope="module")
def model() -> DeepSeekV3:
    config = ModelConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=1,
        intermediate_size=12, num_nextn_predict_layers=2, num_attention_heads=2, q_lora_rank=None,
        kv_lora_rank=6, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        moe_intermediate_size=6, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    return DeepSeekV3(config).initialize(torch.Generator().manual_seed(2))


def test_the_losses_of_a_pass_are_those_of_its_parts(model):
    sequences = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]]
    labels = [[*tokens[1:], IGNORE] for tokens in sequences]
    batch = Batch.from_sequences(sequences, labels)
    output = model(batch, mtp=True)
    found = losses(output, model.lm_head.weight, batch, top_k=2, balance=True)
    scores = model.lm_head(output.hidden)
    main = F.cross_entropy(scores, batch.labels, ignore_index=IGNORE, reduction="sum")
    ahead = torch.zeros(())
    for depth, hidden in enumerate(output.mtp_hidden, 1):
        rows = [row[depth:] + [IGNORE] * depth for row in labels]
        further = torch.tensor([label for row in rows for label in row])
        scores = model.lm_head(hidden)
        ahead += F.cross_entropy(scores, further, ignore_index=IGNORE, reduction="sum") / 2
    term = sum(sequence_balance(r, batch.cu_seqlens, 2) for r in output.routings)
    torch.testing.assert_close(found, loss.Losses(main, ahead, term))
    assert len(output.routings) == 3
    off = losses(output, model.lm_head.weight, batch, top_k=2, balance=False)
    assert off.balance.item() == 0.0
    assert off.main == found.main


def test_the_heads_weight_learns_from_every_depth(model):
    batch = Batch.from_sequences([[3, 1, 4, 1, 5]], [[1, 4, 1, 5, IGNORE]])
    head = model.lm_head.weight
    found = losses(model(batch, mtp=True), head, batch, top_k=2, balance=True)
    main, ahead = (torch.autograd.grad(x, head, retain_graph=True)[0] for x in found[:2])
    both = torch.autograd.grad(found.main + 0.3 * found.mtp, head)[0]
    assert ahead.norm() > 0
    torch.testing.assert_close(both, main + 0.3 * ahead)


def test_sums_by_sequence_are_those_of_each_as_an_index_and_as_a_product():
    lengths = torch.tensor([3, 1, 70])
    x = torch.randn(74, 5)
    owner = torch.arange(3).repeat_interleave(lengths)
    expected = torch.stack([part.sum(0) for part in x.split(lengths.tolist())])
    torch.testing.assert_close(loss.sums_by_sequence(x, lengths), expected)
    torch.testing.assert_close(loss.membership_sums(x, owner, torch.arange(3)), expected)
