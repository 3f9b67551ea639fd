"""The chunked cross-entropy and its gradients are torch's, whatever the sizes; see also
tests/train/test_loss.py.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.batch import IGNORE
from abyssal.kernels import cross_entropy as kernel
from abyssal.kernels import registry
from abyssal.kernels.cross_entropy import reference

SIZES = st.tuples(
    st.sampled_from([1, 2, 17, 40]),
    st.sampled_from([1, 5, 32]),
    st.sampled_from([1, 2, 15, 16, 17, 250]),
)


def example(T, D, W, seed=0, dtype=torch.float32):
    """hidden (T, D), head (W, D) and labels (T,), some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, D, generator=generator).to(dtype)
    head = torch.randn(W, D, generator=generator).to(dtype)
    labels = torch.randint(W, (T,), generator=generator)
    labels[torch.rand(T, generator=generator) < 0.3] = IGNORE
    return hidden.requires_grad_(), head.requires_grad_(), labels


def cross_entropy(hidden, head, labels, rows):
    """The sum alone."""
    return kernel.cross_entropy(hidden, head, labels, rows)[0]


def native_rows(logits, labels, learning=True):
    """The loss, and what becomes of logits (T, W)."""
    function = registry.native("cross_entropy")
    if function is None:
        pytest.skip("native kernels are off")
    T, W = logits.shape
    logits, losses = logits.clone(), torch.empty(T)
    total, exps = torch.zeros(1, dtype=torch.float64), torch.empty(2, W)
    is_bf16 = int(logits.dtype == torch.bfloat16)
    wrong = function(logits, labels, IGNORE, losses, total, exps, T, W, int(learning), is_bf16, 2)
    assert wrong == 0
    assert total.item() == pytest.approx(losses.double().sum().item(), nan_ok=True)
    return losses, logits


@given(SIZES, st.sampled_from([1, 7, 16, 64]), st.integers(0, 5))
def test_it_is_the_reference_and_so_are_its_gradients(sizes, rows, seed):
    hidden, head, labels = example(*sizes, seed)
    ours, theirs = cross_entropy(hidden, head, labels, rows), reference(hidden, head, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(ours * 0.7, (hidden, head))
    expected = torch.autograd.grad(theirs * 0.7, (hidden, head))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@given(SIZES, st.sampled_from([7, 64]), st.integers(0, 5))
def test_in_bfloat16_it_is_close(sizes, rows, seed):
    hidden, head, labels = example(*sizes, seed, torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in (hidden, head)]
    ours, theirs = cross_entropy(hidden, head, labels, rows), reference(*exact, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=0.02, abs=0.02 * len(labels))
    found = torch.autograd.grad(ours, (hidden, head))
    expected = torch.autograd.grad(theirs, exact)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).norm() <= 0.03 * b.norm() + 0.02


# Rows


@given(SIZES, st.sampled_from([1, 7, 64]), st.booleans())
def test_the_losses_of_rows_are_torchs_and_their_sum_is_the_loss(sizes, rows, learning):
    hidden, head, labels = example(*sizes)
    with torch.set_grad_enabled(learning):
        total, each = kernel.cross_entropy(hidden, head, labels, rows)
    wanted = torch.nn.functional.cross_entropy(
        hidden.detach() @ head.detach().T, labels, ignore_index=IGNORE, reduction="none"
    )
    torch.testing.assert_close(each, wanted, rtol=1e-4, atol=1e-5)
    assert each.sum().item() == pytest.approx(total.item(), rel=1e-5, abs=1e-5)
    assert not each.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@given(st.sampled_from([1, 3, 40]), st.sampled_from([1, 2, 15, 16, 17, 250, 3000]),
       st.sampled_from([0.01, 1.0, 30.0, 1e4]))  # fmt: skip
def test_rows_become_softmax_minus_one_at_the_label_rounded_once(dtype, T, W, size):
    generator = torch.Generator().manual_seed(T + W)
    logits = (torch.randn(T, W, generator=generator) * size).to(dtype)
    labels = torch.randint(W, (T,), generator=generator)
    labels[0] = IGNORE
    losses, found = native_rows(logits, labels)
    exact = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(exact, labels, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(losses.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(wanted.sum(), exact)
    rounding = 2**-8 * 1.01 if dtype == torch.bfloat16 else 1e-5
    assert ((found - grad).abs() <= rounding * grad.abs() + 1e-6).all()
    assert not found[0].any()
    assert torch.equal(native_rows(logits, labels, learning=False)[1], logits)


def test_words_that_cannot_come_take_nothing_and_cost_everything():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, 0.0], [1.0, 2.0, -torch.inf, 3.0]])
    losses, grad = native_rows(logits, torch.tensor([0, 2]))
    assert losses[0].item() == pytest.approx(1.0986123)
    torch.testing.assert_close(grad[0], torch.tensor([-2 / 3, 0.0, 1 / 3, 1 / 3]))
    assert losses[1] == torch.inf


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 18])
def test_one_bad_number_spoils_its_row_and_no_other(value, place):
    logits = torch.randn(3, 19)
    good, _ = native_rows(logits, torch.tensor([1, 2, 3]))
    logits[1, place] = value
    losses, grad = native_rows(logits, torch.tensor([1, 2, 3]))
    assert losses[1].isnan()
    assert grad[1].isnan().any()
    assert torch.equal(losses[[0, 2]], good[[0, 2]])
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("label", [-1, 11, 10**12])
@pytest.mark.usefixtures("twins")
def test_a_label_outside_the_vocabulary_is_refused(label):
    hidden, head, labels = example(6, 5, 11)
    labels[3] = label
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(hidden, head, labels, 4)


def test_the_number_of_threads_changes_no_bit(threads):
    logits, labels = torch.randn(300, 500).bfloat16(), torch.randint(500, (300,))
    results = []
    for count in (1, 2, 5):
        threads(count)
        hidden = logits[:, :32].clone().requires_grad_()
        head = logits.T[:, :32].contiguous().requires_grad_()
        total = cross_entropy(hidden, head, labels, 300)
        results.append(total.detach())
    assert results[0] == results[1] == results[2]
