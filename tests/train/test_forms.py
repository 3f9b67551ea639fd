"""Questions put and answers read: R1-Zero's plain text, and chats whose thought comes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.evals.puzzles import Puzzle
from abyssal.train.forms import chat_reply, final, zero_reply
from abyssal.train.rewards import Rewards, judge

PLAIN = st.text(st.characters(exclude_characters="<>\\{}"), max_size=40)
FIVE = Puzzle("sums", "2 + 3 =", "5", lambda answer: float(answer == "5"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5", "5"),
        ("\n\n5\n", "5"),
        (r"So it is \boxed{5}.", "5"),
        (r"Not \boxed{4} but \boxed{5}", "5"),
        ("I say <answer> 5 </answer>", "5"),
        ("<answer> 4 </answer> <answer> 5 </answer>", None),
        ("<answer> 5", None),
        ("<answer></answer>", None),
        ("", None),
        (" \n", None),
    ],
)
def test_the_final_answer_of_a_chat(text, answer):
    assert final(text) == answer
    assert chat_reply("so", text) == ("so", answer, answer is not None)


@given(PLAIN, PLAIN)
def test_a_closed_thought_and_an_answer_are_well_formed(thought, text):
    reply = chat_reply(thought, text)
    assert reply.thought == thought
    assert reply.is_well_formed == bool(text.strip())
    assert reply.answer == (text.strip() or None)


@given(PLAIN, PLAIN, st.sampled_from(["<think>", "</think>"]), st.booleans())
def test_tags_in_letters_break_the_form(thought, text, tag, is_inside):
    thought, text = (thought + tag, text) if is_inside else (thought, tag + text)
    assert not chat_reply(thought, text).is_well_formed


@given(PLAIN)
def test_a_thought_that_never_ends_earns_nothing(text):
    reply = chat_reply(None, f"{text} 5")
    assert judge(FIVE, reply, 1.0, Rewards()).total == 0


@given(PLAIN, PLAIN)
def test_both_forms_read_the_same_answer(thought, answer):
    zero = zero_reply(f"<think>{thought}</think><answer>{answer}</answer>")
    chat = chat_reply(thought, answer)
    assert zero.thought == chat.thought
    assert (zero.answer or None) == chat.answer
    assert zero.is_well_formed
    for reply in (zero, chat):
        assert judge(FIVE, reply, 0.0, Rewards()).accuracy == (answer.strip() == "5")
