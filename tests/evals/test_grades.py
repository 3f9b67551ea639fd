"""What an answer says in the end, and whether it is right: as math-verify says it."""

import threading

import pytest
from math_verify import parse, verify

from abyssal.evals import data
from abyssal.evals.grades import boxed, final, majority, number, same_math, vote


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>is it 3?</think>It is 4.", "It is 4."),
        ("<think>a</think> <answer> 4 </answer> or so", "4"),
        ("<answer>3</answer> no, <answer>4", "4"),
        ("<answer>3</answer></think>4", "4"),
        ("  4\n", "4"),
        ("", ""),
    ],
)
def test_final_is_behind_the_thoughts_and_inside_the_answer(text, expected):
    assert final(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("it is 1,234.50 dollars.", "1234.50"), ("3, 4, 5", "5"), ("a -7.", "-7"), ("none", None)],
)
def test_number_is_the_last_one(text, expected):
    assert number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} and \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{a{b}c}}", "a{b}c"),
        (r"\boxed{open", None),
        ("none", None),
    ],
)
def test_boxed_is_the_last_one_with_its_braces(text, expected):
    assert boxed(text) == expected


ANSWERS = [
    ("The answer is 18.", "18", True),
    ("so it is $\\frac{1}{2}$", "0.5", True),
    (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)", True),
    ("it is $1,080", "1080", True),
    ("$x \\in [2,5)$", "[2,5)", True),
    ("The answer is 17.", "18", False),
    ("I do not know", "18", False),
    ("", "18", False),
]


@pytest.mark.parametrize(("answer", "expected", "right"), ANSWERS)
def test_same_math_is_math_verify_s_verdict(answer, expected, right):
    assert same_math(answer, expected) is right
    assert right is bool(verify(parse(f"${expected}$"), parse(answer)))


def test_extraction_is_math_verify_s_on_the_answers_of_math_500():
    for row in data.rows("math500")[::10]:
        text = f"Therefore the answer is $\\boxed{{{row['answer']}}}$."
        found = parse(text)
        assert same_math(text, row["answer"])
        assert vote(text) == str(found[0])
        assert same_math(text, "12345") is bool(verify(parse("$12345$"), found))


def test_worked_answers_of_gsm8k_are_right_and_others_are_not():
    for row in data.rows("gsm8k")[::40]:
        expected = row["answer"].rpartition("####")[2].strip().replace(",", "")
        assert same_math(f"The answer is {expected}.", expected)
        assert not same_math(f"The answer is {int(expected) + 1}.", expected)


def test_grades_hold_in_other_threads():
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(same_math("$2/4$", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]


def test_equal_expressions_are_one_vote_and_most_votes_win():
    assert vote("it is 1/2") is not None
    assert majority(["3", "4", "4", None, "3", "4"]) == 1
    assert majority([None, "3", "4"]) == 1
    assert majority([None, None]) is None
