"""What the MTP module guesses right, by position."""

from abyssal.evals.drafts import DEPTH, acceptance

TEXTS = ["the deep sea", "the fish", "1 2 3 +"]


def test_positions_are_counted_from_the_nearest_on_and_never_rise(evaluated):
    found = acceptance(evaluated, TEXTS)
    assert [row["ahead"] for row in found] == list(range(1, DEPTH + 1))
    accepted = [row["accepted"] for row in found]
    assert accepted == sorted(accepted, reverse=True)
    for row in found:
        assert 0 < row["drafted"] >= row["accepted"]
        assert row["low"] <= row["share"] <= row["high"]
    assert acceptance(evaluated, TEXTS) == found
