"""Tasks whose answer is the likeliest of some endings.

    acc        right where the ending with the highest log p(ending | context) is
    acc_norm   the same with log p / characters of the ending, which does not favor short ones

Minimal pairs (BLiMP, CLAMS) compare whole sentences behind BOS. The others are asked as lm-eval's
tasks of the same name ask them. Ties go to the first ending. No torch.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from abyssal.evals import data
from abyssal.evals.task import About, Choice, ChoiceTask, Fits, Item, most_examples

_LETTERS = "ABCD"
_XCOPA = {"it": {"cause": "perché", "effect": "quindi"}, "zh": {"cause": "因为", "effect": "所以"}}


def _pair(item: Item, fits: Fits) -> Choice:
    """A good sentence and a bad one."""
    sentences = (item.data["good"], item.data["bad"])
    return Choice("", sentences, 0, sentences)


def _behind(context: str, endings: Sequence[str], right: int) -> Choice:
    """Endings that follow a space."""
    return Choice(context, tuple(f" {one}" for one in endings), right, tuple(endings))


# Minimal pairs


def _blimp() -> list[Item]:
    return [
        Item(row["id"], f"{row['good']} / {row['bad']}", row, row["phenomenon"])
        for row in data.rows("blimp")
    ]


def _clams() -> list[Item]:
    found = []
    for i, row in enumerate(data.rows("clams")):
        name, text = f"{row['lang']}-{row['paradigm']}-{i}", f"{row['good']} / {row['bad']}"
        found.append(Item(name, text, row, row["lang"]))
    return found


# Questions


def _arc_easy() -> list[Item]:
    rows = enumerate(data.rows("arc_easy"))
    return [Item(f"arc-easy-test-{i}", row["question"], row) for i, row in rows]


def _arc(item: Item, fits: Fits) -> Choice:
    row = item.data
    return _behind(f"Question: {row['question']}\nAnswer:", row["choices"], row["answer"])


def _arc_pairs() -> list[Item]:
    rows = enumerate(data.rows("arc_challenge_pairs"))
    return [Item(f"arc-pair-{i}", row["question"], row) for i, row in rows]


def _arc_pair(item: Item, fits: Fits) -> Choice:
    row = item.data
    return _behind(f"Question: {row['question']}\nAnswer:", (row["good"], row["bad"]), 0)


def _hellaswag() -> list[Item]:
    rows = enumerate(data.rows("hellaswag"))
    return [Item(f"hellaswag-val-{i}", row["ctx"], row) for i, row in rows]


def _story(item: Item, fits: Fits) -> Choice:
    """The activity, what happened, and four ways it may go on."""
    row = item.data
    before, dot, started = row["ctx"].rpartition(". ")
    if started[:1].islower():  # the sentence that the endings finish: published as a field apart
        started = started.capitalize()
    context = plain(f"{row['activity']}: {before}{dot}{started}")
    return _behind(context, [plain(ending) for ending in row["endings"]], row["label"])


def plain(text: str) -> str:
    """WikiHow's marks taken out, as lm-eval does it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _mmlu() -> list[Item]:
    rows = [row for row in data.rows("mmlu") if row["split"] == "test"]
    return [
        Item(f"{row['subject']}-{i}", row["question"], row, row["subject"])
        for i, row in enumerate(rows)
    ]


def _exam(item: Item, fits: Fits) -> Choice:
    """The question behind the five of its subject's development set, or as many as fit."""
    subject = item.data["subject"]
    examples = _examples()[subject]
    about = subject.replace("_", " ")
    opening = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    context = most_examples(examples, _exam_text(item.data), fits, opening)
    return _behind(context, _LETTERS, item.data["answer"])


@cache
def _examples() -> dict[str, list[str]]:
    """The development questions of every subject with their answers."""
    found: dict[str, list[str]] = {}
    for row in data.rows("mmlu"):
        if row["split"] == "dev":
            text = f"{_exam_text(row)} {_LETTERS[row['answer']]}\n\n"
            found.setdefault(row["subject"], []).append(text)
    return found


def _exam_text(row: Mapping[str, Any]) -> str:
    choices = zip(_LETTERS, row["choices"], strict=True)
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in choices)
    return f"{row['question'].strip()}\n{listed}\nAnswer:"


def _xcopa() -> list[Item]:
    rows = [row for row in data.rows("xcopa") if row["split"] == "test"]
    return [
        Item(f"{row['lang']}-test-{i}", row["premise"], row, row["lang"])
        for i, row in enumerate(rows)
    ]


def _cause(item: Item, fits: Fits) -> Choice:
    """The premise without its full stop, a connective, and two causes or effects."""
    row = item.data
    link = _XCOPA[row["lang"]][row["question"]]
    choices = [f"{text[0].lower()}{text[1:]}" for text in (row["choice1"], row["choice2"])]
    return _behind(f"{row['premise'].strip()[:-1]} {link}", choices, row["label"])


TASKS = (
    ChoiceTask(
        name="blimp",
        about=About(
            source="BLiMP, Warstadt et al. 2020, alexwarstadt/blimp",
            license="CC BY 4.0",
            protocol="zero-shot; the sentence with the higher log-likelihood behind BOS",
            caveat="66,799 of the 67,000 pairs: 3 of each paradigm are held out elsewhere",
            chance=0.5,
        ),
        items=_blimp,
        choice=_pair,
    ),
    ChoiceTask(
        name="clams",
        about=About(
            source="CLAMS, Mueller et al. 2020, aaronmueller/clams",
            license="Apache-2.0",
            protocol="zero-shot; the sentence with the higher log-likelihood behind BOS",
            caveat="English and French, 120 pairs of each paradigm",
            chance=0.5,
        ),
        items=_clams,
        choice=_pair,
    ),
    ChoiceTask(
        name="arc_easy",
        about=About(
            source="ARC, Clark et al. 2018, AI2",
            license="CC BY-SA 4.0",
            protocol="zero-shot; the likeliest of four answers to `Question: ...\\nAnswer:`",
            chance=0.25,
        ),
        items=_arc_easy,
        choice=_arc,
        normalized=True,
    ),
    ChoiceTask(
        name="arc_challenge_pairs",
        about=About(
            source="made of ARC-Challenge, Clark et al. 2018, AI2",
            license="CC BY-SA 4.0",
            protocol="zero-shot; the right answer against one wrong one",
            caveat="not ARC-Challenge: two answers instead of four; never report it as that",
            chance=0.5,
        ),
        items=_arc_pairs,
        choice=_arc_pair,
        normalized=True,
    ),
    ChoiceTask(
        name="hellaswag",
        about=About(
            source="HellaSwag, Zellers et al. 2019",
            license="MIT",
            protocol="zero-shot; the likeliest of four endings",
            caveat="a sample of 1,000 of the 10,042 validation questions",
            chance=0.25,
        ),
        items=_hellaswag,
        choice=_story,
        normalized=True,
    ),
    ChoiceTask(
        name="mmlu",
        about=About(
            source="MMLU, Hendrycks et al. 2021",
            license="MIT",
            protocol="5-shot with the subject's development questions; the likeliest letter",
            caveat="fewer examples where five do not fit the model's context",
            chance=0.25,
        ),
        items=_mmlu,
        choice=_exam,
    ),
    ChoiceTask(
        name="xcopa",
        about=About(
            source="XCOPA, Ponti et al. 2020, cambridgeltl/xcopa",
            license="CC BY 4.0",
            protocol="zero-shot; the likelier of two causes or effects behind a connective",
            caveat="Italian and Chinese of eleven languages",
            chance=0.5,
        ),
        items=_xcopa,
        choice=_cause,
        normalized=True,
    ),
)
