"""Fill in the middle only reorders: the pieces always make the document again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from abyssal.data.fim import FimControl, fill_in_middle

CONTROL = FimControl(bos=0, eos=1, fim_begin=2, fim_hole=3, fim_end=4)


def reassembled(tokens: list[int]) -> list[int]:
    """prefix + middle + suffix, where the control tokens say they are."""
    begin, hole, end = (tokens.index(mark) for mark in (2, 3, 4))
    closing = tokens[-1:] if tokens[-1] == CONTROL.eos else []
    middle = tokens[end + 1 : len(tokens) - len(closing)]
    return tokens[:begin] + tokens[begin + 1 : hole] + middle + tokens[hole + 1 : end] + closing


@given(
    body=st.lists(st.integers(5, 99), max_size=30),
    bos=st.booleans(),
    eos=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_pieces_make_the_document_again(body: list[int], bos: bool, eos: bool, seed: int):
    document = [0] * bos + body + [1] * eos
    if not document:
        return
    told = fill_in_middle(np.array(document), CONTROL, np.random.default_rng(seed)).tolist()
    assert len(told) == len(document) + 3
    assert reassembled(told) == document
    assert told.index(2) == bos


def test_every_piece_is_sometimes_long_and_sometimes_empty():
    rng = np.random.default_rng(0)
    document = np.array([0, *range(10, 20), 1])
    told = [fill_in_middle(document, CONTROL, rng).tolist() for _ in range(500)]
    prefixes = {tokens.index(3) - 2 for tokens in told}
    suffixes = {tokens.index(4) - tokens.index(3) - 1 for tokens in told}
    middles = {len(tokens) - 2 - tokens.index(4) for tokens in told}
    assert prefixes == suffixes == middles == set(range(11))
