"""Batches: what laying sequences end to end keeps, and what filling up adds."""

from hypothesis import given
from hypothesis import strategies as st

from abyssal.batch import IGNORE, Batch

SEQUENCES = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=6)


@given(sequences=SEQUENCES, multiple=st.integers(1, 40))
def test_filled_up_it_is_the_same_batch_and_a_remainder_that_is_ignored(sequences, multiple):
    labels = [[token + 1 for token in sequence] for sequence in sequences]
    plain = Batch.from_sequences(sequences, labels)
    filled = Batch.from_sequences(sequences, labels, multiple)
    T, N = len(plain.tokens), len(sequences)
    missing = -T % multiple
    assert len(filled.tokens) == T + (missing if 4 * missing <= T else 0)
    for name in ("tokens", "positions", "labels"):
        assert getattr(filled, name)[:T].equal(getattr(plain, name))
    assert filled.cu_seqlens[: N + 1].equal(plain.cu_seqlens)
    assert (filled.labels[T:] == IGNORE).all()
    assert all(
        filled.tokens[start:end].tolist() in [one[: end - start] for one in sequences]
        for start, end in zip(filled.cu_seqlens[N:-1], filled.cu_seqlens[N + 1 :], strict=True)
    )
