"""Rewards by hand: what is right, what is well formed, which language it is in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import ConfigError
from abyssal.evals.puzzles import puzzles
from abyssal.train.forms import zero_reply
from abyssal.train.rewards import Rewards, consistency, judge

GOOD = "<think> 1 + 1 = 2 </think> <answer> 2 </answer>"


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        (GOOD, True),
        (f" {GOOD}\n", True),
        (GOOD.replace("> <", ">\n\n<"), True),
        ("<think></think><answer></answer>", True),
        (f"{GOOD} and so on", False),
        (f"Well: {GOOD}", False),
        ("<answer> 2 </answer>", False),
        ("<answer> 2 </answer> <think> 1 </think>", False),
        ("<think> 1 <answer> 2 </answer>", False),
        ("<think> <think> 1 </think> </think> <answer> 2 </answer>", False),
        ("<think> 1 </think> so <answer> 2 </answer>", False),
        (f"{GOOD} {GOOD}", False),
        ("", False),
    ],
)
def test_the_form(text, is_good):
    assert zero_reply(text).is_well_formed is is_good


def test_parts_and_their_sum():
    (puzzle,) = puzzles("chain_sum", seed=1, count=1, min_terms=2, max_terms=2)
    right = f"<think> easy </think> <answer> {puzzle.answer} </answer>"
    found = judge(puzzle, zero_reply(right), 0.5, Rewards(accuracy=2, format=0.5, length=0.2))
    assert found == (1, 1, 0, 0.5, 0, pytest.approx(2.4))
    untagged = judge(puzzle, zero_reply(puzzle.answer), 0.5, Rewards())
    assert untagged.total == 0
    wrong = judge(
        puzzle, zero_reply(right.replace(puzzle.answer, f"{puzzle.answer}1")), 0.5, Rewards()
    )
    assert (wrong.accuracy, wrong.format, wrong.total) == (0, 1, 1)  # near is not right
    weights = Rewards(accuracy=0, format=0, language=1, model=0.5)
    found = judge(puzzle, zero_reply(right), 0.5, weights, 3.0)
    assert found.language == 1
    assert found.total == pytest.approx(2.5)


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ConfigError, match="format=-1"):
        Rewards(format=-1)


TEXTS = {
    "en": "First we add the two numbers, and then we have the answer: it is not five.",
    "de": "Zuerst addieren wir die beiden Zahlen, und dann ist es nicht mehr schwer.",
    "fr": "Nous avons donc les deux nombres, et la somme est dans la table.",
    "ru": "Сначала мы складываем два числа и получаем ответ.",
    "zh": "首先我们把两个数相加，然后得到答案。",
}


@pytest.mark.parametrize("target", TEXTS)
def test_each_language_is_told_from_the_others(target):
    for language, text in TEXTS.items():
        share = consistency(text, target)
        assert share >= 0.9 if language == target else share <= 0.25, (language, share)


@pytest.mark.parametrize("target", TEXTS)
def test_a_mixed_text_lies_between(target):
    others = [text for language, text in TEXTS.items() if language != target]
    for other in others:
        assert 0.1 < consistency(f"{TEXTS[target]} {other}", target) < 0.95
    assert consistency("12 + 3 = 15", target) == 1


@given(st.text(), st.sampled_from(list(TEXTS)))
def test_a_share_is_a_share(text, target):
    assert 0 <= consistency(text, target) <= 1
    assert zero_reply("<think>x</think><answer>1</answer>").thought == "x"
