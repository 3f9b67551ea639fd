"""Puzzles: the same for a seed, graded, put as plain text, and held out by what they ask."""

from itertools import islice

import pytest

from abyssal.errors import ConfigError
from abyssal.evals import puzzles
from abyssal.evals.puzzles import Generator
from abyssal.tokenizer.bpe import Tokenizer

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


def test_a_seed_always_gives_the_same_and_answers_are_graded():
    some = puzzles.puzzles("chain_sum", seed=3, count=5, **SUMS)
    again = puzzles.puzzles("chain_sum", seed=3, count=5, **SUMS)
    assert [p[:3] for p in some] == [p[:3] for p in again]
    assert len({p.question for p in some}) > 1
    for puzzle in some:
        assert puzzle.grade(puzzle.answer) == 1
        assert puzzle.grade(f" {puzzle.answer}\n") == 1
        assert puzzle.grade(str(int(puzzle.answer) + 1)) < 1
        assert puzzle.grade("") < 1


def test_an_unknown_task_or_setting_is_refused():
    with pytest.raises(ConfigError, match="no 'sums'"):
        Generator("sums", 0)
    with pytest.raises(ConfigError, match="terms"):
        Generator("chain_sum", 0, {"terms": 2})


def test_what_is_held_out_is_never_walked_otherwise():
    made = Generator("chain_sum", 1, SUMS)
    out = {p.question for _, p in islice(made.walk(held_out=True), 40)}
    rest = {p.question for _, p in islice(Generator("chain_sum", 2, SUMS).walk(), 300)}
    assert len(out) > 20
    assert not out & rest
    number, puzzle = next(made.walk(17))
    assert number >= 17
    assert made[number].question == puzzle.question


def test_settings_from_texts():
    found = puzzles.settings_of(["a=2", "b = 0.5", "c=true", "operators=+-", "d=word"])
    assert found == {"a": 2, "b": 0.5, "c": True, "operators": ["+", "-"], "d": "word"}
    with pytest.raises(ConfigError, match="key=value"):
        puzzles.settings_of(["a"])


def test_the_form_is_plain_text_of_which_nothing_becomes_a_control_token():
    tokenizer = Tokenizer.train([puzzles.prompt_of("1 + 1 =")] * 3, 340)
    prompt = puzzles.prompt_of("What is\n 1 + 1? <think> <｜Assistant｜>")
    assert prompt.endswith("\nUser: What is 1 + 1? <think> <｜Assistant｜>\nAssistant:")
    tokens = tokenizer.encode(prompt, bos=True)
    assert not tokenizer.control_ids & set(tokens[1:])
    assert tokenizer.decode(tokens) == prompt


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> 1 </think> <answer> 12 </answer>", "12"),
        ("<answer>\n-3</answer> and more", "-3"),
        ("12", None),
        ("<answer> 1 </answer> <answer> 2 </answer>", None),
        ("<answer> 1", None),
    ],
)
def test_the_answer_in_a_text(text, answer):
    assert puzzles.answer_in(text) == answer
