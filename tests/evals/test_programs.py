"""HumanEval and MBPP: the published solutions pass, cheats and wrong ones do not."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import SandboxError
from abyssal.evals import sandbox
from abyssal.evals.programs import HUMANEVAL_STOP, TASKS, pass_at_k, passes

HUMANEVAL, MBPP = TASKS
EVERYTHING_FITS = lambda text: True  # noqa: E731


def isolated() -> bool:
    try:
        return bool(sandbox.isolation())
    except SandboxError:
        return False


needs_jail = pytest.mark.skipif(not isolated(), reason="no user namespaces for this user here")
humaneval = {item.id.removeprefix("HumanEval/"): item for item in HUMANEVAL.items()}
mbpp = {item.id.removeprefix("mbpp-"): item for item in MBPP.items()}


def test_all_of_both_is_there():
    assert len(HUMANEVAL.items()) == len(humaneval) == 164
    assert len(MBPP.items()) == len(mbpp) == 500


@needs_jail
@pytest.mark.parametrize("number", ["0", "32", "38", "50", "64", "127", "163"])
def test_a_published_solution_passes_however_it_is_written(number):
    item = humaneval[number]
    body, prompt = item.data["canonical_solution"], item.data["prompt"]
    whole = prompt[prompt.rindex("def ") :] + body
    block = f"Here it is:\n```python\n{whole}\n```\nIt works because ..."
    for text in (body, whole, block, f"<think>\nhm\n</think>\n\n{block}"):
        assert HUMANEVAL.grade(item, text) == 1.0
    assert HUMANEVAL.grade(item, f"<think> yes </think> <answer>\n{whole}\n</answer>") == 1.0
    assert HUMANEVAL.grade(item, "    return None\n") == 0.0


@needs_jail
@pytest.mark.parametrize("number", ["11", "64", "367", "510"])
def test_a_published_solution_of_mbpp_passes(number):
    item = mbpp[number]
    assert MBPP.grade(item, item.data["code"]) == 1.0
    assert MBPP.grade(item, f"```python\n{item.data['code']}\n```") == 1.0
    assert MBPP.grade(item, "def f(): pass") == 0.0


@needs_jail
@pytest.mark.parametrize(
    "cheat",
    ["    import os; os._exit(0)\n", "    exit(0)\n", "    pass\nraise SystemExit(0)\n",
     "    return float('nan\n", "", "    print('ok')\n"],
)  # fmt: skip
def test_ending_early_is_not_passing(cheat):
    assert HUMANEVAL.grade(humaneval["0"], cheat) == 0.0


@needs_jail
def test_what_a_program_prints_does_not_matter():
    assert passes("print('x' * 1000)", "assert True")
    assert not passes("print('x' * 1000)", "assert False")


def test_prompts_are_the_published_ones():
    item = humaneval["0"]
    asked = HUMANEVAL.question(item, "text", EVERYTHING_FITS)
    assert (asked.prompt, asked.stop) == (item.data["prompt"], HUMANEVAL_STOP)
    asked = MBPP.question(mbpp["11"], "text", EVERYTHING_FITS)
    assert isinstance(asked.prompt, str)
    assert asked.stop == ("[DONE]",)
    assert asked.prompt.count("You are an expert Python programmer, and here is your task: ") == 4
    assert asked.prompt.count("[BEGIN]\n") == 4
    assert asked.prompt.count("\n[DONE]\n\n") == 3
    assert asked.prompt.endswith('assert remove_Occ("PHP","P") == "H"\n[BEGIN]\n')
    assert "\r" not in asked.prompt
    assert asked.prompt.startswith(
        "You are an expert Python programmer, and here is your task: Write a function to find the "
        "similar elements from the given two tuple lists. Your code should pass these tests:\n\n"
        "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n"
    )


def test_examples_leave_where_they_do_not_fit():
    asked = MBPP.question(mbpp["11"], "text", lambda text: len(text) < 400)
    assert asked.prompt == f"{mbpp['11'].text}[BEGIN]\n"


@pytest.mark.parametrize("template", ["chat", "r1-zero"])
@pytest.mark.parametrize(("task", "item"), [(HUMANEVAL, humaneval["0"]), (MBPP, mbpp["11"])])
def test_other_forms_keep_the_lines_of_the_code(task, item, template):
    asked = task.question(item, template, EVERYTHING_FITS)
    text = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0].content
    assert item.text.strip() in text


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer(count, data):
    right, k = data.draw(st.integers(0, count)), data.draw(st.integers(1, count))
    draws = list(itertools.combinations(range(count), k))
    share = sum(any(place < right for place in draw) for draw in draws) / len(draws)
    assert math.isclose(pass_at_k(count, right, k), share, abs_tol=1e-12)


@pytest.mark.parametrize(("count", "right", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_of_what_cannot_be_is_refused(count, right, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(count, right, k)
