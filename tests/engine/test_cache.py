"""A cache in pages gives a sequence what one pass over all of it would, however it was filled."""

import copy
import os
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.batch import Batch
from abyssal.engine.cache import PAGE, Extent, PagedCache
from abyssal.kernels.registry import reference_only
from abyssal.model.transformer import DeepSeekV3

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
NUM_PAGES = 40
TILE = 32  # tokens of a pass in the deterministic mode


@pytest.fixture(params=["native", "reference"], autouse=True)
def kernels(request):
    """Every test with native kernels, and with torch alone."""
    if request.param == "native":
        yield
        return
    with reference_only():
        yield


def paged(model, fixed=False, dtype=None):
    """A cache that has been used before, by sequences that left nothing but nan."""
    config, dtype = model.config, dtype or model.lm_head.weight.dtype
    layers = config.num_hidden_layers
    cache = PagedCache(
        config, NUM_PAGES, dtype, torch.device("cpu"), num_layers=layers, fixed=fixed
    )
    cache.pool[:, 1:] = -1 if dtype == torch.int8 else torch.nan  # a scale of such bytes is nan
    return cache


def read(model, cache, pieces):
    """One pass over (pages, start, tokens) each -> the hidden states of each."""
    batch = Batch.from_sequences([tokens for _, _, tokens in pieces])
    starts = torch.cat([torch.full((len(tokens),), start) for _, start, tokens in pieces])
    batch = Batch(batch.tokens, batch.positions + starts, batch.cu_seqlens)
    cache.begin([Extent(pages, start, len(tokens)) for pages, start, tokens in pieces])
    return model(batch, cache).hidden.split([len(tokens) for _, _, tokens in pieces])


def unfolded(model, sequences):
    return model(Batch.from_sequences(sequences)).hidden.split([len(s) for s in sequences])


def words(draw, length):
    return [draw.randrange(300) for _ in range(length)]


def test_absorbed_passes_over_changing_sequences_equal_one_unfolded_pass_each(model):
    """Prompts in pieces, decoding and departures at random, on pages that change hands."""
    draw = random.Random(4)
    cache = paged(model)
    free = list(range(1, NUM_PAGES))
    live: list[tuple[list[int], list[int]]] = []  # the pages and the tokens of each sequence
    num_departed = 0
    for _ in range(80):
        if not live or (len(live) < 6 and draw.random() < 0.5):
            live.append(([], []))
        new = [words(draw, draw.choice([1, 1, 1, 2, 2, 40])) for _ in live]
        pieces = []
        for (pages, tokens), more in zip(live, new, strict=True):
            while len(pages) * PAGE < len(tokens) + len(more):
                pages.append(free.pop(draw.randrange(len(free))))
            pieces.append((pages, len(tokens), more))
            tokens += more
        found = read(model, cache, pieces)
        whole = unfolded(model, [tokens for _, tokens in live])
        for part, full in zip(found, whole, strict=True):
            torch.testing.assert_close(part, full[-len(part) :], **CLOSE)
        for i in reversed(range(len(live))):
            if len(live[i][1]) > 200 or draw.random() < 0.1:
                free += live.pop(i)[0]
                num_departed += 1
    assert num_departed > 20


@given(cuts=st.sets(st.integers(1, 139), max_size=12), together=st.booleans(), fixed=st.booleans())
def test_a_sequence_may_be_cut_anywhere_into_passes_or_into_extents_of_one(
    model, cuts, together, fixed
):
    tokens = words(random.Random(1), 140)
    borders = [0, *sorted(cuts), 140]
    pieces = [([7, 3, 5], a, tokens[a:b]) for a, b in pairwise(borders)]
    cache = paged(model, fixed)
    if together:
        found = read(model, cache, pieces)
    else:
        found = [read(model, cache, [piece])[0] for piece in pieces]
    torch.testing.assert_close(torch.cat(found), unfolded(model, [tokens])[0], **CLOSE)


@given(pages=st.permutations(range(1, 7)))
def test_which_pages_hold_a_sequence_changes_no_bit(model, pages):
    sequences = [words(random.Random(n), n) for n in (130, 70, 64)]
    results = []
    for own in (range(1, 7), pages):
        tables = own[:3], own[3:5], own[5:]
        cache = paged(model)
        pieces = [(t, 0, s[:-2]) for t, s in zip(tables, sequences, strict=True)]
        first = read(model, cache, pieces)
        pieces = [(t, len(s) - 2, s[-2:]) for t, s in zip(tables, sequences, strict=True)]
        results.append(torch.cat([*first, *read(model, cache, pieces)]))
    assert torch.equal(*results)


@pytest.mark.parametrize("num_drafts", [1, 2, 3, 9])
def test_drafts_of_many_read_at_once_give_what_they_give_one_at_a_time(model, num_drafts):
    """Also where they reach into a new page, and where rejected ones lie behind."""
    draw = random.Random(num_drafts)
    sequences = [words(draw, length) for length in (5, 62, 64, 100, 61)]
    tables = [[3 * i + 1, 3 * i + 2] for i in range(5)]
    cache = paged(model)
    prompts = list(zip(tables, [0] * 5, sequences, strict=True))
    read(model, cache, prompts)
    rejected = [(t, len(s), words(draw, num_drafts + 1)) for t, _, s in prompts]
    read(model, cache, rejected)
    ahead = [(t, start, words(draw, num_drafts + 1)) for t, start, _ in rejected]
    found = read(model, cache, ahead)

    cache = paged(model)
    read(model, cache, prompts)
    for i in range(num_drafts + 1):
        one = read(model, cache, [(t, start + i, new[i : i + 1]) for t, start, new in ahead])
        for at_once, alone in zip(found, one, strict=True):
            torch.testing.assert_close(at_once[i : i + 1], alone, **CLOSE)


def test_a_copied_page_lets_two_sequences_share_a_beginning_and_part(model):
    draw = random.Random(2)
    prompt, ends = words(draw, 100), [words(draw, 50) for _ in range(2)]
    cache = paged(model)
    read(model, cache, [([4, 9], 0, prompt)])
    cache.copy([(9, 2), (2, 11)])  # the first 64 tokens stay shared
    found = read(model, cache, [([4, 2, 3], 100, ends[0]), ([4, 11, 8], 100, ends[1])])
    whole = unfolded(model, [prompt + end for end in ends])
    for part, full in zip(found, whole, strict=True):
        torch.testing.assert_close(part, full[100:], **CLOSE)


def test_a_page_takes_the_bytes_it_says(model):
    cache = paged(model)
    layers = model.config.num_hidden_layers
    assert cache.pool.nbytes == NUM_PAGES * PagedCache.bytes_per_page(
        model.config, layers, cache.pool.dtype
    )
    half = PagedCache.bytes_per_page(model.config, layers, torch.bfloat16)
    assert half == layers * 64 * (12 + 8) * 2


def met_by_all(model):
    """A model whose tokens meet every expert: no rounding can send one elsewhere."""
    other = DeepSeekV3(replace(model.config, num_experts_per_tok=model.config.n_routed_experts))
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_cache_of_integers_gives_about_what_one_of_floats_gives(model, fixed):
    draw = random.Random(5)
    sequences = [words(draw, length) for length in (130, 70, 64)]
    tables = [[4, 9, 1], [2, 7], [3]]
    model = met_by_all(model)
    cache = paged(model, fixed, torch.int8)
    found = [[], [], []]
    for start, end in pairwise([0, 40, 41, 63, 64]):
        pieces = [(t, start, s[start:end]) for t, s in zip(tables, sequences, strict=True)]
        for parts, part in zip(found, read(model, cache, pieces), strict=True):
            parts.append(part)
    cache.copy([(9, 12), (7, 5)])
    rest = [([4, 12, 1], 64, sequences[0][64:]), ([2, 5], 64, sequences[1][64:])]
    for parts, part in zip(found, read(model, cache, rest), strict=False):
        parts.append(part)
    for parts, full in zip(found, unfolded(model, sequences), strict=True):
        assert (torch.cat(parts) - full).norm() < 0.01 * full.norm()


def test_a_page_of_integers_takes_five_bytes_more_a_token(model):
    cache = paged(model, dtype=torch.int8)
    layers = model.config.num_hidden_layers
    page = PagedCache.bytes_per_page(model.config, layers, torch.int8)
    assert page == layers * 64 * (12 + 8 + 4 + 1)
    assert cache.pool.nbytes == NUM_PAGES * page


def even(model):
    """A model whose sizes are multiples of 32, and which has a query latent."""
    config = replace(
        model.config, hidden_size=64, intermediate_size=96, num_attention_heads=4,
        q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=32, qk_nope_head_dim=32,
        v_head_dim=32, moe_intermediate_size=32, max_position_embeddings=256,
    )  # fmt: skip
    other = DeepSeekV3(config).initialize(torch.Generator().manual_seed(6))
    return other.eval().requires_grad_(False)


def tiles(sequences, most, draw):
    """Passes of TILE tokens over all sequences: (sequence, start, count) each, None for padding.

    In any order, `most` tokens of one sequence at once, padding at the end or in front.
    """
    done = [0] * len(sequences)
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        pieces, room = [], TILE
        waiting = [i for i, s in enumerate(sequences) if done[i] < len(s)]
        for i in draw.sample(waiting, len(waiting)):
            count = min(room, len(sequences[i]) - done[i], draw.randint(1, most))
            if count:
                pieces.append((i, done[i], count))
                done[i] += count
                room -= count
        yield draw.choice([pieces + [None] * room, [None] * room + pieces])


def read_in_tiles(model, sequences, most, draw):
    """The hidden states of each sequence, read in passes of TILE tokens in fixed mode."""
    cache, out = paged(model, fixed=True), [[] for _ in sequences]
    free = draw.sample(range(1, NUM_PAGES), NUM_PAGES - 1)
    tables = [[free.pop() for _ in range(-(-len(s) // PAGE))] for s in sequences]
    for plan in tiles(sequences, most, draw):
        pieces = [
            ((0,), 0, words(draw, 1)) if entry is None
            else (tables[entry[0]], entry[1], sequences[entry[0]][entry[1] :][: entry[2]])
            for entry in plan
        ]  # fmt: skip
        for entry, hidden in zip(plan, read(model, cache, pieces), strict=True):
            if entry is not None:
                out[entry[0]].append(hidden)
    return [torch.cat(parts) for parts in out]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_even_sizes", [False, True])
@torch.no_grad()
def test_passes_of_one_size_give_a_sequence_the_same_bits_in_any_company_order_and_chunks(
    model, dtype, of_even_sizes
):
    model = (even(model) if of_even_sizes else copy.deepcopy(model)).to(dtype)
    draw = random.Random(9)
    sequences = [words(draw, length) for length in (130, 33, 1, 64, 65)]
    alone = [read_in_tiles(model, [s], TILE, draw)[0] for s in sequences]
    for most in (1, 5, TILE):
        for found, expected in zip(read_in_tiles(model, sequences, most, draw), alone, strict=True):
            assert torch.equal(found, expected)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_page_takes_memory_when_it_is_written_and_not_before(model, dtype):
    page_bytes = PagedCache.bytes_per_page(model.config, 2, dtype)
    before = resident_bytes()
    cache = PagedCache(model.config, 2**31 // page_bytes, dtype, torch.device("cpu"), num_layers=2)
    assert cache.pool.nbytes > 2**31 - page_bytes
    assert cache.pool.data_ptr() % 64 == 0
    assert resident_bytes() - before < 2**27
    assert not cache.pool[:, 1000].any()
    cache.pool[:, 1:20_000] = 1
    assert resident_bytes() - before > 19_000 * page_bytes
