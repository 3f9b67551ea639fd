"""Attention over pages is attention by definition, and in its fixed version blind to company."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels import latent_attention as module
from abyssal.kernels.latent_attention import (
    fixed_attention,
    latent_attention,
    plan_group,
    plan_pairs,
    reference,
)

N, PAGE, H, W, C = 60, 64, 3, 14, 10
CPU = torch.device("cpu")


def random_pages(dtype=torch.float32):
    """A pool of pages, all full of something."""
    return torch.randn(N, PAGE, W, generator=torch.Generator().manual_seed(5)).to(dtype)


def random_queries(count, dtype=torch.float32):
    return torch.randn(count, H, W, generator=torch.Generator().manual_seed(count)).to(dtype)


def padded(tables):
    longest = max(map(len, tables))
    return np.array([[*table, *[0] * (longest - len(table))] for table in tables])


def tables_for(lengths, seed=0):
    """Pages anywhere in the pool for sequences of these lengths."""
    free = list(range(1, N))
    random.Random(seed).shuffle(free)
    return [[free.pop() for _ in range(-(-length // PAGE))] for length in lengths]


def assert_as_defined(starts, n, scale=0.3):
    tables, pages = tables_for([start + n for start in starts]), random_pages()
    q = random_queries(len(starts) * n)
    group = plan_group(padded(tables), np.array(starts), n, PAGE, CPU)
    found = latent_attention(q.unflatten(0, (-1, n)), pages, group, scale, C)
    positions = [start + i for start in starts for i in range(n)]
    each = [table for table in tables for _ in range(n)]
    expected = reference(q, pages, each, positions, scale, C)
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=2e-5, rtol=1e-4)


@given(
    starts=st.lists(st.integers(0, 400), min_size=1, max_size=8),
    n=st.integers(1, 4),
    copied_pages=st.sampled_from([1, 6, 100]),
)
def test_it_is_the_reference_wherever_the_pages_lie(starts, n, copied_pages):
    with pytest.MonkeyPatch.context() as patch:  # groups that fit one copy, or take many
        patch.setattr(module, "COPY_BYTES", copied_pages * PAGE * W * 4)
        assert_as_defined(starts, n)


@pytest.mark.parametrize("start", [0, 1, 63, 64, 300])
@pytest.mark.parametrize("n", [63, 64, 128, 129, 300])
def test_a_prompt_longer_than_a_block_is_read_as_by_the_reference(start, n):
    assert_as_defined([start], n)


def test_long_prompts_may_be_read_together():
    assert_as_defined([0, 70, 5], 200)


def test_huge_scores_do_not_overflow():
    tables, pages = tables_for([70, 3]), random_pages() * 1e4
    group = plan_group(padded(tables), np.array([69, 2]), 1, PAGE, CPU)
    pairs = plan_pairs(padded(tables), np.array([69, 2]), PAGE, CPU)
    q = random_queries(2) * 1e4
    assert latent_attention(q.unsqueeze(1), pages, group, 1.0, C).isfinite().all()
    assert fixed_attention(q, pages, pairs, 1.0, C).isfinite().all()


@pytest.mark.parametrize("fixed", [False, True])
def test_in_bfloat16_it_stays_within_bfloat16_of_the_definition(fixed):
    positions = [200, 5, 130, 64]
    tables = tables_for([position + 1 for position in positions])
    pages, q = random_pages(torch.bfloat16), random_queries(4, torch.bfloat16)
    table, where = padded(tables), np.array(positions)
    if fixed:
        found = fixed_attention(q, pages, plan_pairs(table, where, PAGE, CPU), 0.3, C)
    else:
        group = plan_group(table, where, 1, PAGE, CPU)
        found = latent_attention(q.unsqueeze(1), pages, group, 0.3, C).squeeze(1)
    expected = reference(q.float(), pages.float(), tables, positions, 0.3, C)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


@given(positions=st.lists(st.integers(0, 400), min_size=1, max_size=8))
def test_the_fixed_version_is_the_reference_too(positions):
    tables = tables_for([position + 1 for position in positions])
    pages, q = random_pages(), random_queries(len(positions))
    pairs = plan_pairs(padded(tables), np.array(positions), PAGE, CPU)
    found = fixed_attention(q, pages, pairs, 0.3, C)
    expected = reference(q, pages, tables, positions, 0.3, C)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    position=st.integers(0, 300),
    company=st.lists(st.integers(0, 300), max_size=40),
    seed=st.integers(0, 99),
)
def test_a_row_of_the_fixed_version_has_the_same_bits_in_any_company_and_place(
    dtype, position, company, seed
):
    """Other rows, other pages, other lengths, another number of rows, something else behind."""
    pages, mine = random_pages(dtype), random_queries(1, dtype)
    alone = tables_for([position + 1])
    pairs = plan_pairs(padded(alone), np.array([position]), PAGE, CPU)
    expected = fixed_attention(mine, pages, pairs, 0.3, C)[0]

    draw = random.Random(seed)
    place = draw.randint(0, len(company))
    positions = [*company[:place], position, *company[place:]]
    tables = [[draw.randrange(30) for _ in range(p // PAGE + 1)] for p in positions]
    tables[place] = draw.sample(range(30, N), len(alone[0]))  # mine alone
    elsewhere = random_queries(N * PAGE, dtype)[:, 0].view(N, PAGE, W)
    for old, new in zip(alone[0], tables[place], strict=True):
        elsewhere[new] = pages[old]
    elsewhere[tables[place][-1], position % PAGE + 1 :] = 7
    q = random_queries(len(positions) + 1, dtype)[1:] * 3
    q[place] = mine[0]
    pairs = plan_pairs(padded(tables), np.array(positions), PAGE, CPU)
    assert torch.equal(fixed_attention(q, elsewhere, pairs, 0.3, C)[place], expected)
