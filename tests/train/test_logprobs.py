"""Log-probabilities in chunks are those of all logits at once, and so are their gradients."""

import pytest
import torch

from abyssal.train import logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [0, 1, 33, 100])
def test_chunks_are_the_whole(monkeypatch, rows, temperature):
    monkeypatch.setattr(logprobs, "LOGITS_BYTES", 4 * 50 * 32)
    hidden = torch.randn(rows, 8, requires_grad=True)
    head = torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (rows,))
    assert logprobs.rows_at_a_time(head) == 32
    found = logprobs.logprobs(hidden, head, labels, temperature)
    log_probs = (hidden @ head.T / temperature).log_softmax(-1)
    expected = log_probs.gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(found, expected)
    given = torch.randn(rows)
    grads = torch.autograd.grad(found, (hidden, head), given)
    others = torch.autograd.grad(expected, (hidden, head), given)
    for mine, theirs in zip(grads, others, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
