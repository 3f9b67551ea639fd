"""The forms in which questions are put to a model and its answers are read.

    zero    ... User: question        <think> thought </think> <answer> answer </answer>
            Assistant:
    chat    <User> question           thought </think> answer EOS
            <Assistant> <think>

DeepSeek-R1 (arXiv 2501.12948): the first is R1-Zero's, plain text with tags that are text like any
other; the second R1's own, in a layout whose control tokens open and close the thought.
"""

import re
from typing import Literal, NamedTuple

from abyssal.engine.prompts import Prompts
from abyssal.evals.grades import boxed
from abyssal.evals.puzzles import answer_in, prompt_of
from abyssal.tokenizer.message import Message

Form = Literal["zero", "chat"]
Thinking = Literal["r1", "v3.1"]  # the layouts in which a model can think

_ZERO = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_THINK_TAG = re.compile(r"</?think>")


class Reply(NamedTuple):
    """What was written, taken apart."""

    thought: str  # all of it where nothing tells thought and answer apart
    answer: str | None  # what is graded; None: there is none, or several
    is_well_formed: bool


def zero_reply(text: str) -> Reply:
    """Thoughts between tags, an answer between tags, and nothing else; then it is well formed."""
    found = _ZERO.fullmatch(text)
    is_clean = found is not None and not any(_TAG.search(inside) for inside in found.groups())
    return Reply(found[1] if found else text, answer_in(text), is_clean)


def chat_reply(thought: str | None, text: str) -> Reply:
    r"""A thought that was closed (None: never), then an answer: alone, in \boxed{}, in <answer>.

    A tag of thoughts that was spelled out in letters is none, and breaks the form.
    """
    if thought is None:
        return Reply(text, None, False)
    answer = final(text)
    is_clean = not _TAG.search(thought) and not _THINK_TAG.search(text)
    return Reply(thought, answer, is_clean and answer is not None)


def final(text: str) -> str | None:
    r"""The answer of a text behind a thought; None if it is empty, or has several <answer> tags."""
    if "<answer>" in text or "</answer>" in text:
        return answer_in(text) or None
    return boxed(text) or text.strip() or None


def prompt_tokens(
    prompts: Prompts, question: str, form: Form, layout: Thinking, *, thinking: bool = True
) -> list[int]:
    """The tokens a question is put with, up to where the answer begins; chats of V3.1 need not
    think.

    Raises:
        RequestError: it is too long for the model.
    """
    if form == "zero":
        return prompts.read(prompt_of(question))
    return prompts.render([Message("user", question)], layout, thinking=thinking or layout == "r1")
