"""Sorting tokens by expert and back is the weighted sum of experts by definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels.experts import _fits_native, reference, routed_experts
from abyssal.kernels.registry import native, reference_only
from abyssal.kernels.sorted_experts import grouped_experts, sort_by_expert, sorted_experts

needs_native = pytest.mark.skipif(
    native("experts_forward") is None, reason="no native kernels on this machine"
)


@st.composite
def cases(draw):
    """T tokens, each with K different experts of E, only some of which are ever chosen."""
    T, E = draw(st.integers(1, 70)), draw(st.integers(1, 9))
    popular = draw(st.integers(1, E))
    K = draw(st.integers(1, popular))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    chosen = torch.randperm(E, generator=generator)[:popular]
    rank = torch.rand(T, popular, generator=generator).argsort(-1)[:, :K]
    return chosen[rank], E, generator


def output_and_gradients(function, experts, num_experts, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    T, D, F = len(experts), 6, 5
    shapes = [(T, D), experts.shape, (num_experts, 2 * F, D), (num_experts, D, F)]
    x, weights, gate_up, down = (torch.randn(shape, generator=generator) for shape in shapes)
    leaves = [t.requires_grad_() for t in (x.to(dtype), weights, gate_up.to(dtype), down.to(dtype))]
    out = function(leaves[0], experts, *leaves[1:])
    out.backward(torch.randn(out.shape, generator=generator).to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@given(case=cases())
def test_it_is_the_reference_and_so_are_its_gradients(case):
    experts, E, generator = case
    seed = generator.initial_seed()
    ours = output_and_gradients(sorted_experts, experts, E, seed)
    defined = output_and_gradients(reference, experts, E, seed)
    for found, expected in zip(ours, defined, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_expert_nobody_chose_has_a_gradient_of_zero():
    experts = torch.tensor([[0, 3], [3, 0], [0, 3]])
    *_, gate_up, down = output_and_gradients(sorted_experts, experts, 5, 0)
    for grad in (gate_up, down):
        busy = grad.flatten(1).abs().amax(1) > 0
        assert busy.tolist() == [True, False, False, True, False]


def test_in_bfloat16_it_stays_within_bfloat16_of_the_definition_in_float32():
    experts = torch.rand(64, 6).argsort(-1)[:, :3]
    low = output_and_gradients(sorted_experts, experts, 6, 0, torch.bfloat16)
    high = output_and_gradients(reference, experts, 6, 0)
    for found, expected in zip(low, high, strict=True):
        assert (found.float() - expected).norm() < 0.02 * expected.norm()


@given(case=cases())
def test_every_choice_has_one_row_in_the_run_of_its_expert(case):
    experts, E, _ = case
    order = sort_by_expert(experts, E)
    owner = torch.arange(E).repeat_interleave(torch.tensor(order.counts))
    flat = experts.flatten()
    assert torch.equal(owner[order.row], flat)
    assert torch.equal(order.pair[order.row], torch.arange(len(flat)))
    assert (order.pair == len(flat)).sum() == len(owner) - len(flat)  # the rest is padding


@given(case=cases())
def test_room_for_the_longest_runs_changes_no_place(case):
    experts, E, _ = case
    tight, roomy = sort_by_expert(experts, E), sort_by_expert(experts, E, experts.numel() + 32 * E)
    M = len(tight.pair)
    assert torch.equal(roomy.row, tight.row)
    assert torch.equal(roomy.pair[:M], tight.pair)
    assert (roomy.pair[M:] == experts.numel()).all()
    assert roomy.counts == tight.counts
    assert roomy.ends.tolist() == torch.tensor(tight.counts).cumsum(0).tolist()


# The native twin: BF16 on the CPU


def problem(T, E, K, D, F, seed, skew=0.0):
    """Tokens, what they choose and matrices, all in BF16 but the weights; skew favors the last."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    wish = torch.rand(T, E, generator=generator) + skew * torch.arange(E)
    experts = wish.topk(K).indices
    x, weights = draw(T, D), draw(T, K).sigmoid()
    gate_up, down = draw(E, 2 * F, D) * D**-0.5, draw(E, D, F) * F**-0.5
    low = [t.bfloat16() for t in (x, gate_up, down, draw(T, D))]
    return low[0], experts, weights, low[1], low[2], low[3]


def all_of(function, x, experts, weights, gate_up, down, grad, dtype=torch.bfloat16, **options):
    """The output and the gradients of x, weights, gate_up and down."""
    low = (x, weights, gate_up, down)
    leaves = [t.detach().clone().to(dtype if t is not weights else t.dtype) for t in low]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = function(leaves[0], experts, *leaves[1:], **options)
    out.backward(grad.to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_near(found, expected, bound, slack=0.0):
    for ours, defined in zip(found, expected, strict=True):
        error = (ours.double() - defined).norm()
        assert error <= bound * defined.double().norm() + slack * defined.numel() ** 0.5


def shapes():
    return st.tuples(
        st.integers(1, 150),
        st.integers(1, 8),
        st.integers(1, 8),
        st.one_of(st.integers(1, 80), st.sampled_from([300, 513])),
        st.one_of(st.integers(1, 70), st.sampled_from([129, 300])),
        st.integers(0, 1000),
        st.sampled_from([0.0, 0.2, 2.0]),
    )


@needs_native
@given(shape=shapes(), keep=st.booleans())
def test_natively_all_is_within_bfloat16_of_the_definition(shape, keep):
    T, E, K, D, F, seed, skew = shape
    case = problem(T, E, min(K, E), D, F, seed, skew)
    assert _fits_native(*case[:5])
    found = all_of(routed_experts, *case, keep=keep)
    assert [t.dtype for t in found] == [torch.bfloat16] * 2 + [torch.float32] + [torch.bfloat16] * 2
    # Few numbers may all be small differences of large ones: these are about 1.
    slack = 1e-2 if T * D * F < 2000 else 0.0
    assert_near(found, all_of(reference, *case, dtype=torch.float32), 1e-2, slack)


@pytest.mark.parametrize("skew", [0.0, 0.3, 5.0])
@pytest.mark.parametrize(("T", "E", "K"), [(40, 1, 1), (70, 6, 3), (200, 9, 2)])
def test_grouped_as_on_a_gpu_all_is_within_bfloat16_of_the_definition(T, E, K, skew):
    case = problem(T, E, K, 48, 24, T, skew)  # at the largest skew only K of E are ever chosen
    found = all_of(grouped_experts, *case)
    assert_near(found, all_of(reference, *case, dtype=torch.float32), 1e-2)


@needs_native
@pytest.mark.parametrize("skew", [0.0, 5.0])
def test_blocks_of_rows_and_of_outputs_change_nothing_but_the_time(skew):
    case = problem(1300, 3, 1, 600, 280, 0, skew)  # more rows, columns and inputs than a block
    found = all_of(routed_experts, *case)
    assert_near(found, all_of(reference, *case, dtype=torch.float32), 1e-2)


@needs_native
@pytest.mark.parametrize("skew", [0.0, 0.3, 5.0])
def test_the_number_of_threads_changes_no_bit(skew):
    case = problem(700, 6, 2, 130, 48, 1, skew)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(all_of(routed_experts, *case))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


@needs_native
def test_a_token_does_not_depend_on_its_company():
    x, experts, weights, gate_up, down, _ = problem(90, 4, 2, 64, 40, 2)
    together = routed_experts(x, experts, weights, gate_up, down)
    for t in (0, 31, 89):
        row = slice(t, t + 1)
        alone = routed_experts(x[row], experts[row], weights[row], gate_up, down)
        assert torch.equal(alone, together[row])


@needs_native
def test_hidden_rows_computed_again_are_those_that_were_kept():
    case = problem(200, 5, 2, 96, 33, 3)
    kept, again = (all_of(routed_experts, *case, keep=keep) for keep in (True, False))
    for one, two in zip(kept, again, strict=True):
        assert torch.equal(one, two)


@needs_native
def test_natively_an_expert_nobody_chose_has_a_gradient_of_zero():
    case = list(problem(40, 6, 2, 32, 16, 4))
    case[1] = case[1] % 2 * 3  # experts 0 and 3, maybe twice
    *_, gate_up, down = all_of(routed_experts, *case)
    for grad in (gate_up, down):
        assert (grad.flatten(1).abs().amax(1) > 0).tolist() == [
            True,
            False,
            False,
            True,
            False,
            False,
        ]


@needs_native
def test_matrices_that_learn_nothing_get_no_gradient():
    x, experts, weights, gate_up, down, grad = problem(20, 4, 2, 32, 16, 5)
    routed_experts(x.requires_grad_(), experts, weights, gate_up, down).backward(grad)
    assert x.grad is not None
    assert gate_up.grad is None
    assert down.grad is None


@needs_native
def test_tensors_that_are_no_rows_in_memory_are_copied():
    x, experts, weights, gate_up, down, _ = problem(20, 4, 2, 32, 16, 6)
    expected = routed_experts(x, experts, weights, gate_up, down)
    wide = torch.zeros(20, 40, dtype=x.dtype)
    wide[:, :32] = x
    turned = experts.T.contiguous().T, weights.T.contiguous().T
    assert torch.equal(routed_experts(wide[:, :32], *turned, gate_up, down), expected)


@needs_native
def test_a_nan_stays_with_its_token_and_its_experts():
    x, experts, weights, gate_up, down, _ = problem(50, 8, 2, 40, 24, 7)
    x[7, 3] = torch.nan
    out = routed_experts(x, experts, weights, gate_up, down)
    assert out[7].isnan().all()
    assert not out[torch.arange(50) != 7].isnan().any()


@needs_native
@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_an_expert_that_does_not_exist_is_refused(wrong):
    x, experts, weights, gate_up, down, _ = problem(5, 4, 2, 32, 16, 8)
    experts[3, 1] = wrong
    with pytest.raises(IndexError, match="not in"):
        routed_experts(x, experts, weights, gate_up, down)


def test_without_twins_the_sorted_version_stands_in():
    x, experts, weights, gate_up, down, _ = problem(30, 4, 2, 32, 16, 9)
    with reference_only():
        found = routed_experts(x, experts, weights, gate_up, down)
        expected = sorted_experts(x, experts, weights, gate_up, down)
    assert torch.equal(found, expected)
    none = routed_experts(x[:0], experts[:0], weights[:0], gate_up, down)
    assert none.shape == (0, 32)
