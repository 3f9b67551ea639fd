"""Whether a text gives the right answer: what it answers, and whether that means the same.

Expressions are read and compared by `math-verify` (Hugging Face, Apache-2.0), which knows LaTeX,
fractions, sets, intervals and units. No torch.
"""

import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_LIMIT_S = 5  # of reading or comparing one expression

Parsed = list[Any]  # math-verify's: the expression, and the text it was read from


def final(text: str) -> str:
    """What a text answers in the end: behind </think>, inside the last <answer> if there is one."""
    text = text.rpartition("</think>")[2]
    answers: list[str] = _ANSWER.findall(text)
    return (answers[-1] if answers else text).strip()


def number(text: str) -> str | None:
    """The last number of a text, without commas between thousands."""
    found: list[str] = _NUMBER.findall(text)
    return found[-1].rstrip(",").replace(",", "") if found else None


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...}, braces inside included; None if it never closes."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start:end].strip()
    return None


def same_math(answer: str, expected: str) -> bool:
    """Whether the expression that an answer ends with means what was expected, a bare expression.

    Expected is read as LaTeX and as plain text; an answer from wherever math-verify finds one.
    """
    from math_verify import verify  # type: ignore[import-untyped]

    golds, found = (parsed(text) for text in (f"${expected}$", answer))
    if not golds or not found:
        return False
    return bool(_limited(verify, golds, found))


def vote(answer: str) -> str | None:
    """What an answer counts for when many are asked: equal expressions are one vote."""
    found = parsed(answer)
    return str(found[0]) if found else None


def parsed(text: str) -> Parsed:
    """The expression a text ends with, as math-verify reads it; empty where there is none."""
    from math_verify import parse

    return list(_limited(parse, text))


def majority(votes: Sequence[str | None]) -> int | None:
    """The place of the first vote for what most voted for; None where nobody voted."""
    cast = [one for one in votes if one is not None]
    if not cast:
        return None
    most = max(cast.count(one) for one in cast)
    return next(i for i, one in enumerate(votes) if one is not None and cast.count(one) == most)


def _limited(function: Callable[..., Any], *values: object) -> Any:
    """A call of math-verify with its time limit, which rests on a signal of the main thread."""
    name = "parsing_timeout" if function.__name__ == "parse" else "timeout_seconds"
    is_main = threading.current_thread() is threading.main_thread()
    return function(*values, **{name: _LIMIT_S if is_main else None})
