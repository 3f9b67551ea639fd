"""Tasks whose answer is a program: HumanEval and MBPP, run in the sandbox against their tests.

    text       a function to be gone on with (HumanEval), or a task behind three worked ones (MBPP)
    chat       as a user's message; the first fenced block of the answer is the program
    r1-zero    in the plain-text form of DeepSeek-R1-Zero

A program is right when it runs to the end of the tests. That is told by a word that only its last
line prints, since ``exit(0)`` before the tests would look just as well.
"""

import math
import re
import secrets
from collections.abc import Callable

from abyssal.evals import data, grades, sandbox
from abyssal.evals.puzzles import PREAMBLE
from abyssal.evals.sandbox import Limits
from abyssal.evals.task import About, AnswerTask, Fits, Item, Question, Template, most_examples
from abyssal.tokenizer.message import Message

# openai/human-eval gives a program 3 s of the wall; MBPP's own solution of its task 123 needs 5 s
# here. So CPU time decides: a busy machine is not a program's fault.
LIMITS = Limits(wall_s=30.0, cpu_s=10)
HUMANEVAL_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # Chen et al. 2021, section 2.1
MBPP_TEST = range(11, 511)  # ids; 1 to 10 are for prompts, of which 2, 3 and 4 are shown
MBPP_SHOTS = (2, 3, 4)
MBPP_ASK = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n{tests}\n"
)
_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def pass_at_k(count: int, right: int, k: int) -> float:
    """The chance that k of `count` answers, of which some are right, hold a right one.

    1 - C(count - right, k) / C(count, k), without bias (Chen et al. 2021, section 2.1).
    """
    if not 0 <= right <= count or not 1 <= k <= count:
        raise ValueError(f"pass@{k} of {right} right answers in {count}")
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def passes(program: str, tests: str, *, allow_weak: bool = False) -> bool:
    """Whether a program, with its tests behind it, runs to the end.

    Raises:
        SandboxError: it cannot be contained here, and allow_weak is not given.
    """
    word = secrets.token_hex(16)
    whole = f"{program}\n{tests}\n__import__('os').write(1, b'\\n{word}\\n')\n"
    found = sandbox.run(whole, limits=LIMITS, allow_weak=allow_weak)
    return found.status == "ok" and f"\n{word}\n" in found.stdout


def tasks(*, allow_weak: bool = False) -> tuple[AnswerTask, AnswerTask]:
    """HumanEval and MBPP; allow_weak is the sandbox's."""
    humaneval = AnswerTask(
        name="humaneval",
        about=About(
            source="HumanEval, Chen et al. 2021, openai/human-eval",
            license="MIT",
            protocol="zero-shot; the function's body to the next top-level statement; pass@k",
        ),
        items=_humaneval,
        question=_humaneval_question,
        grade=_graded(_humaneval_parts, allow_weak),
        vote=_no_vote,
    )
    mbpp = AnswerTask(
        name="mbpp",
        about=About(
            source="MBPP, Austin et al. 2021 (arXiv 2108.07732)",
            license="CC BY 4.0",
            protocol="three-shot (text), else zero-shot; tests in the prompt; pass@k",
            caveat="the 500 problems of the test split, ids 11 to 510",
        ),
        items=_mbpp,
        question=_mbpp_question,
        grade=_graded(_mbpp_parts, allow_weak),
        vote=_no_vote,
    )
    return humaneval, mbpp


def _graded(
    parts: Callable[[Item, str], tuple[str, str]], allow_weak: bool
) -> Callable[[Item, str], float]:
    """1 where the program that a task makes of an answer passes the tests, else 0."""
    return lambda item, text: float(passes(*parts(item, text), allow_weak=allow_weak))


def _no_vote(item: Item, text: str) -> str | None:
    """Programs are not counted as equal by their text."""
    return None


def _written(text: str) -> tuple[str, bool]:
    """The program in an answer, and whether it stood in a block of its own."""
    answer = grades.final(text)
    blocks = _FENCED.findall(answer)
    return (blocks[0], True) if blocks else (answer, False)


def _asked(text: str, template: Template, plain: Question) -> Question:
    """The question in another form than to be continued."""
    if template == "chat":
        return Question((Message("user", text),), (), 1024)
    if template == "r1-zero":
        return Question(f"{PREAMBLE}\nUser: {text}\nAssistant:", ("</answer>", "\nUser:"), 1024)
    return plain


# HumanEval


def _humaneval() -> list[Item]:
    return [Item(row["task_id"], row["prompt"], row) for row in data.rows("humaneval")]


def _humaneval_question(item: Item, template: Template, fits: Fits) -> Question:
    text = f"Complete this function. Answer with all of it in one block of Python.\n\n{item.text}"
    return _asked(text, template, Question(item.text, HUMANEVAL_STOP, 512))


def _humaneval_parts(item: Item, text: str) -> tuple[str, str]:
    """The prompt gone on with; a whole function replaces it, behind its imports and helpers."""
    written, in_block = _written(text)
    name = item.data["entry_point"]
    function = re.compile(rf"^def {name}\(", re.MULTILINE)
    if in_block or function.search(written):
        (start,) = (found.start() for found in function.finditer(item.text))
        program = item.text[:start] + written
    else:
        program = item.text + text
    return program, f"{item.data['test']}\ncheck({name})"


# MBPP


def _mbpp() -> list[Item]:
    return [
        Item(f"mbpp-{row['task_id']}", _mbpp_ask(row), row)
        for row in data.rows("mbpp")
        if row["task_id"] in MBPP_TEST
    ]


def _mbpp_ask(row: data.Row) -> str:
    return MBPP_ASK.format(text=row["text"], tests="\n".join(row["test_list"]))


def _mbpp_question(item: Item, template: Template, fits: Fits) -> Question:
    rows = {row["task_id"]: row for row in data.rows("mbpp")}
    examples = [
        f"{_mbpp_ask(rows[id_])}[BEGIN]\n{_lines(rows[id_]['code'])}\n[DONE]\n\n"
        for id_ in MBPP_SHOTS
    ]
    plain = most_examples(examples, f"{item.text}[BEGIN]\n", fits)
    return _asked(item.text, template, Question(plain, ("[DONE]",), 512))


def _mbpp_parts(item: Item, text: str) -> tuple[str, str]:
    written, _ = _written(text)
    setup = item.data["test_setup_code"]
    return _lines(written), "\n".join([_lines(setup), *item.data["test_list"]])


def _lines(code: str) -> str:
    """Code with the line ends of Unix; the published file has those of Windows."""
    return code.replace("\r\n", "\n")


TASKS = tasks()
