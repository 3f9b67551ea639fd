"""Attention over pages is attention by definition, and in its fixed version blind to company."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kernels import latent_attention as module
from abyssal.kernels.latent_attention import (
    Extents,
    fixed_attention,
    latent_attention,
    native_attention,
    plan_group,
    plan_pairs,
    reference,
    twin,
)
from abyssal.kernels.latent_pages import append_integers, dequantize, integer_bytes

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


# The native twin, and pages of integers

KINDS = [torch.float32, torch.bfloat16, torch.int8]
# Of float32 pages sums differ; of the others, queries and weights are rounded to BF16 too.
BOUND = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.int8: 1e-2}


def pool_of(rows, dtype, rank):
    """Rows (N, 64, W) as pages of a kind."""
    if dtype != torch.int8:
        return rows.to(dtype)
    num_pages, _, width = rows.shape
    pages = torch.zeros(num_pages, PAGE * integer_bytes(width, rank), dtype=torch.int8)
    append_integers(pages, torch.arange(num_pages * PAGE), rows.flatten(0, 1), rank)
    return pages


def floats_of(pages, width, rank):
    return dequantize(pages, width, rank) if pages.dtype == torch.int8 else pages.float()


def attend(q, pages, tables, starts, counts, scale, rank):
    """q (T, H, W) through the native twin; sequence s has counts[s] queries from starts[s] on."""
    offsets = np.array([0, *np.cumsum(counts)])
    extents = Extents(padded(tables).astype(np.int32), np.array(starts), offsets)
    return native_attention(twin(pages), q, pages, extents, scale, rank)


def random_case(seed, heads, width, rank, spans, dtype):
    """Queries, pages that hold nan wherever nobody has written, and tables."""
    make = torch.Generator().manual_seed(seed)
    tables = tables_for([start + count for start, count in spans], seed)
    rows = torch.full((N, PAGE, width), torch.nan)
    for table, (start, count) in zip(tables, spans, strict=True):
        own = torch.full((len(table) * PAGE, width), torch.nan)
        own[: start + count] = torch.randn(start + count, width, generator=make)
        rows[table] = own.view(-1, PAGE, width)
    q = torch.randn(sum(count for _, count in spans), heads, width, generator=make)
    return q, pool_of(rows, dtype, rank), tables


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", KINDS)
@given(
    heads=st.integers(1, 20),
    rank=st.one_of(st.just(64), st.integers(1, 70)),
    rope=st.one_of(st.sampled_from([16, 32]), st.integers(0, 35)),
    spans=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 70)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_native_twin_is_the_reference(dtype, heads, rank, rope, spans, seed):
    width = rank + rope
    q, pages, tables = random_case(seed, heads, width, rank, spans, dtype)
    starts, counts = zip(*spans, strict=True)
    found = attend(q, pages, tables, starts, counts, width**-0.5, rank)
    positions = [start + i for start, count in spans for i in range(count)]
    each = [table for table, count in zip(tables, counts, strict=True) for _ in range(count)]
    expected = reference(q, floats_of(pages, width, rank), each, positions, width**-0.5, rank)
    assert (found - expected).norm() <= BOUND[dtype] * expected.norm()
    if dtype == torch.bfloat16:  # in a model of BF16
        assert torch.equal(
            attend(q.to(dtype).float(), pages, tables, starts, counts, 1, rank).to(dtype),
            attend(q.to(dtype), pages, tables, starts, counts, 1, rank),
        )


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("heads", "rank", "rope"), [(12, 256, 32), (8, 64, 16), (3, 10, 4)])
def test_bits_of_a_query_do_not_depend_on_company_heads_or_threads(
    threads, dtype, heads, rank, rope
):
    width = rank + rope
    spans = [(0, 70), (250, 40), (63, 1), (64, 2), (130, 3)]
    starts, counts = zip(*spans, strict=True)
    q, pages, tables = random_case(1, heads, width, rank, spans, dtype)
    threads(1)
    together = attend(q, pages, tables, starts, counts, 0.1, rank)
    threads(5)
    assert torch.equal(attend(q, pages, tables, starts, counts, 0.1, rank), together)
    threads(2)
    t = 0
    for (start, count), table in zip(spans, tables, strict=True):
        for position in range(start, start + count):
            alone = attend(q[t : t + 1], pages, [table], [position], [1], 0.1, rank)
            assert torch.equal(alone[0], together[t])
            some = q[t : t + 1, 1:2].contiguous()
            head = attend(some, pages, [table], [position], [1], 0.1, rank)
            assert torch.equal(head[0, 0], together[t, 1])
            t += 1


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", KINDS)
def test_huge_scores_do_not_overflow_natively(dtype):
    q, pages, tables = random_case(2, 3, 40, 30, [(0, 70), (200, 1)], dtype)
    assert attend(q * 1e8, pages, tables, [0, 200], [70, 1], 1e4, 30).isfinite().all()


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("dtype", KINDS)
def test_a_nan_is_seen_from_its_position_on_and_not_by_others(dtype):
    rows = torch.randn(6, PAGE, 40, generator=torch.Generator().manual_seed(3))
    rows[1, 10, 5] = torch.nan  # position 74 of the first table below
    q = torch.randn(234, 2, 40, generator=torch.Generator().manual_seed(4))
    tables = [[0, 1, 2], [3, 4, 5]]
    found = attend(q, pool_of(rows, dtype, 30), tables, [74, 0], [86, 148], 0.2, 30)
    assert found[:86, :, 5].isnan().all()
    assert found[86:].isfinite().all()
    found = attend(q[:74], pool_of(rows, dtype, 30), tables, [0], [74], 0.2, 30)
    assert found.isfinite().all()
