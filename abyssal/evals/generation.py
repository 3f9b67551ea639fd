"""Tasks whose answer the model writes: mathematics, graded as expressions, and endless puzzles.

A question is put in one of three ways (`Template`):

    text       to be continued, behind worked examples where the protocol has them
    chat       as a user's message, with the instruction of DeepSeek-R1's model card
    r1-zero    in the plain-text form of DeepSeek-R1-Zero (arXiv 2501.12948, Table 1)

No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import islice

from abyssal.evals import data, grades
from abyssal.evals.puzzles import Generator, Puzzle, prompt_of
from abyssal.evals.task import About, AnswerTask, Fits, Item, Question, Template, most_examples
from abyssal.tokenizer.message import Message

ASK = r"Please reason step by step, and put your final answer within \boxed{}."
PUZZLES = 256  # of each generator, from those held out of training
PREFIX = "rg:"  # of tasks that are generators of reasoning-gym

_MGSM = {  # the words of MGSM's prompts, Shi et al. 2022
    "de": ("Frage:", "Antwort:"),
    "en": ("Question:", "Answer:"),
    "es": ("Pregunta:", "Respuesta:"),
    "fr": ("Question :", "Réponse :"),
    "zh": ("问题：", "答案："),
}
# Sizes a small model can learn; other generators take their own defaults.
_SMALL: dict[str, dict[str, object]] = {
    "basic_arithmetic": {"min_terms": 2, "max_terms": 2, "max_digits": 2},
    "chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 2},
    "countdown": {
        "min_numbers": 3, "max_numbers": 3, "max_value": 20, "min_target": 10, "max_target": 50,
    },
    "gcd": {},
    "knights_knaves": {},
    "leg_counting": {},
    "simple_equations": {},
    "syllogism": {},
}  # fmt: skip


def _asked(
    text: str,
    template: Template,
    plain: Callable[[], str],
    stop: tuple[str, ...],
    max_tokens: int,
) -> Question:
    """A question in the form asked for; `plain` makes the prompt of the text form."""
    if template == "chat":
        return Question((Message("user", f"{text}\n{ASK}"),), (), max_tokens)
    if template == "r1-zero":
        return Question(prompt_of(text), ("</answer>", "\nUser:"), max_tokens)
    return Question(plain(), stop, max_tokens)


def _grade(item: Item, text: str) -> float:
    return float(grades.same_math(grades.final(text), item.data["expected"]))


def _vote(item: Item, text: str) -> str | None:
    return grades.vote(grades.final(text))


# Mathematics


def _gsm8k() -> list[Item]:
    found = []
    for row in data.rows("gsm8k"):
        expected = row["answer"].rpartition("####")[2].strip().replace(",", "")
        found.append(Item(row["id"], row["question"], {"expected": expected}))
    return found


def _gsm8k_question(item: Item, template: Template, fits: Fits) -> Question:
    examples = [f"Q: {q}\nA: {a}\n\n" for q, a in _shots("gsm8k")]
    plain = partial(most_examples, examples, f"Q: {item.text}\nA:", fits)
    return _asked(item.text, template, plain, ("Q:",), 256)


def _math500() -> list[Item]:
    rows = enumerate(data.rows("math500"))
    return [Item(f"math500-{i}", row["problem"], {"expected": row["answer"]}) for i, row in rows]


def _math500_question(item: Item, template: Template, fits: Fits) -> Question:
    examples = [f"Problem:\n{q}\n\nSolution:\n{a}\n\n" for q, a in _shots("math500")]
    plain = partial(most_examples, examples, f"Problem:\n{item.text}\n\nSolution:\n", fits)
    return _asked(item.text, template, plain, ("Problem:",), 512)


def _mgsm() -> list[Item]:
    return [
        Item(
            f"{row['lang']}-{row['id']}",
            row["question"],
            {"expected": row["answer"].replace(",", "")},
            row["lang"],
        )
        for row in data.rows("mgsm")
    ]


def _mgsm_question(item: Item, template: Template, fits: Fits) -> Question:
    question, answer = _MGSM[item.domain]
    plain = f"{question} {item.text}\n{answer}"
    return _asked(item.text, template, lambda: plain, (question,), 256)


@cache
def _shots(task: str) -> list[tuple[str, str]]:
    """Worked examples of a task's published prompt."""
    return [(r["question"], r["answer"]) for r in data.rows("shots") if r["task"] == task]


# Puzzles


def puzzle_task(generator: str) -> AnswerTask:
    """A task of held-out puzzles of one generator; raises ConfigError where there is none."""
    made = Generator(generator, seed=0, settings=_SMALL.get(generator))
    return AnswerTask(
        name=f"{PREFIX}{generator}",
        about=about_puzzles(generator),
        items=partial(_puzzles, made),
        question=_puzzle_question,
        grade=_puzzle_grade,
        vote=_puzzle_vote,
    )


def about_puzzles(generator: str) -> About:
    """What is to be said of a generator's puzzles."""
    settings = _written(_SMALL.get(generator, {}))
    return About(
        source="reasoning-gym 0.1.25, Stojanovski et al. 2025 (arXiv 2505.24760)",
        license="Apache-2.0",
        protocol=f"zero-shot; the generator's own grade of the answer ({settings})",
        caveat="questions whose text hashes to 0 modulo 8, which training leaves out",
    )


def _written(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "its own settings"


@cache
def _puzzles(made: Generator) -> tuple[Item, ...]:
    held_out = islice(made.walk(held_out=True), PUZZLES)
    return tuple(
        Item(f"{made.task}-{number}", puzzle.question, {"puzzle": puzzle})
        for number, puzzle in held_out
    )


def _puzzle_question(item: Item, template: Template, fits: Fits) -> Question:
    plain = f"Question: {item.text}\nAnswer:"
    return _asked(item.text, template, lambda: plain, ("\nQuestion:", "\n\n"), 128)


def _puzzle_grade(item: Item, text: str) -> float:
    puzzle: Puzzle = item.data["puzzle"]
    return float(puzzle.grade(_puzzle_answer(text)) == 1.0)  # no part marks for trying


def _puzzle_vote(item: Item, text: str) -> str | None:
    return _puzzle_answer(text) or None


def _puzzle_answer(text: str) -> str:
    answer = grades.final(text)
    return grades.boxed(answer) or answer


def _mathematics(
    name: str,
    about: About,
    items: Callable[[], Sequence[Item]],
    question: Callable[[Item, Template, Fits], Question],
) -> AnswerTask:
    return AnswerTask(
        name=name, about=about, items=items, question=question, grade=_grade, vote=_vote
    )


TASKS = (
    _mathematics(
        "gsm8k",
        About(
            source="GSM8K, Cobbe et al. 2021, openai/grade-school-math",
            license="MIT; worked examples of Wei et al. 2022",
            protocol="8-shot chain of thought (text), else zero-shot; exact match by math-verify",
            caveat="1,219 of the 1,319 test questions: 100 are held out elsewhere",
        ),
        _gsm8k,
        _gsm8k_question,
    ),
    _mathematics(
        "math500",
        About(
            source="MATH-500, Hendrycks et al. 2021, Lightman et al. 2023",
            license="MIT; worked examples of Lewkowycz et al. 2022",
            protocol="4-shot Minerva prompt (text), else zero-shot; exact match by math-verify",
        ),
        _math500,
        _math500_question,
    ),
    _mathematics(
        "mgsm",
        About(
            source="MGSM, Shi et al. 2022, google-research/url-nlp",
            license="CC BY-SA 4.0",
            protocol="zero-shot in the question's language; exact match by math-verify",
            caveat="five of its languages: German, English, Spanish, French, Chinese",
        ),
        _mgsm,
        _mgsm_question,
    ),
)
GENERATORS = tuple(_SMALL)  # those listed; any other can be asked for by name
