"""The verb that has a teacher answer questions, and keeps what a student should learn."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abyssal.cli import Verb, console
from abyssal.cli.options import check_folder
from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal.train.reinforce import Task
    from abyssal.train.sieve import Sieve
    from abyssal.train.teachers import Teacher
    from abyssal.train.traces import Sampling

Tasks = Annotated[
    str, typer.Option(help="A recipe of stage grpo, whose tasks are asked.", metavar="RECIPE")
]


_Teacher = Annotated[
    str, typer.Argument(help="A model folder, or the URL of an OpenAI-compatible service.")
]
_Out = Annotated[Path, typer.Option(help="Folder for answers, traces and shards.")]
_Task = Annotated[
    list[str] | None,
    typer.Option(help='Instead: a generator and its settings, "gcd max_value=50".'),
]
_Questions = Annotated[int, typer.Option(help="Questions to ask.", metavar="N")]
_Answers = Annotated[int, typer.Option(help="Answers to each.", metavar="N")]
_Form = Annotated[
    Literal["zero", "chat"],
    typer.Option(help="How the teacher is asked: R1-Zero's plain text, or as a user."),
]
_Write = Annotated[
    Literal["zero", "chat"], typer.Option(help="What the student is to learn, in shards.")
]
_Layout = Annotated[
    Literal["r1", "v3.1"], typer.Option(help="Of chats: those of a folder, and those written.")
]
_Temperature = Annotated[float, typer.Option(help="0: always the likeliest.", metavar="T")]
_TopP = Annotated[float, typer.Option(help="Draw from the likeliest only.", metavar="P")]
_MaxTokens = Annotated[int, typer.Option(help="Longest answer, its thought included.", metavar="N")]
_Seed = Annotated[int, typer.Option(help="Same seed, same questions.", metavar="N")]
_Keep = Annotated[int, typer.Option(help="Good answers kept of a question.", metavar="N")]
_Language = Annotated[
    float, typer.Option(help="Least share of the thought's words in English.", metavar="P")
]
_Paragraph = Annotated[int, typer.Option(help="Longest paragraph, in characters.", metavar="N")]
_Tokenizer = Annotated[
    Path | None,
    typer.Option(help="The student's tokenizer folder; without it, the teacher's."),
]
_Instruct = Annotated[
    str, typer.Option(help="Told the teacher behind each question, not the student.")
]
_Model = Annotated[str | None, typer.Option(help="The model's name at a URL.", metavar="NAME")]
_KeyVariable = Annotated[
    str | None,
    typer.Option("--key", help="Environment variable that holds the API key.", metavar="NAME"),
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")]


def sample(
    teacher: _Teacher,
    out: _Out,
    tasks: Tasks = "r1/zero",
    task: _Task = None,
    questions: _Questions = 1000,
    answers: _Answers = 4,
    form: _Form = "zero",
    write: _Write = "chat",
    layout: _Layout = "v3.1",
    temperature: _Temperature = 1.0,
    top_p: _TopP = 1.0,
    max_tokens: _MaxTokens = 256,
    seed: _Seed = 0,
    keep: _Keep = 1,
    language: _Language = 0.9,
    paragraph: _Paragraph = 2000,
    tokenizer: _Tokenizer = None,
    instruct: _Instruct = "",
    model: _Model = None,
    key_variable: _KeyVariable = None,
    json: _Json = False,
) -> None:
    """Let a teacher answer puzzles, keep what is right, and write shards of it.

    Kept is what is whole, well formed, right, of one language, without code
    blocks and long paragraphs. Every answer is a line in OUT; after a stop, run
    the same command again, with more --questions to go on behind them. Another
    sieve or another way to write asks nobody: shards are made anew.
    """
    from abyssal.train.sieve import Sieve
    from abyssal.train.teachers import Manner
    from abyssal.train.traces import Sampling, Writing

    is_url = teacher.startswith(("http://", "https://"))
    if is_url and tokenizer is None:
        raise RequestError(f"{teacher} has no tokenizer to read; give the student's --tokenizer")
    manner = Manner(
        form=form,
        layout=layout,
        answers=answers,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        instruct=instruct,
    )
    sieve = Sieve(keep=keep, language=language, paragraph=paragraph)
    asked = _tasks(tasks, task or [])
    writing = Writing(tokenizer=tokenizer or Path(teacher), form=write, layout=layout)
    who = _teacher(teacher, model, key_variable)
    sampling = Sampling(who, asked, manner, out, questions)
    _run(sampling, sieve)
    report = sampling.publish(sieve, writing)
    made = {"folder": out, "shards": out / "shards", "traces": report.kept}
    console.show({**made, "answers": report.total, "fell": report.dropped}, as_json=json)


def _tasks(recipe: str, written: list[str]) -> "tuple[Task, ...]":
    """The tasks written out, or else those of a recipe."""
    from abyssal.train.reinforce import Task
    from abyssal.train.traces import tasks_of

    if not written:
        return tasks_of(recipe)
    parts = [text.split() for text in written]
    if not all(parts):
        raise RequestError('--task "" names no generator; write "gcd max_value=50", say')
    return tuple(Task(name=name, settings=tuple(settings)) for name, *settings in parts)


def _teacher(teacher: str, model: str | None, key_variable: str | None) -> "Teacher":
    from abyssal.train.teachers import EndpointTeacher, FolderTeacher

    if not teacher.startswith(("http://", "https://")):
        check_folder(teacher)
        return FolderTeacher(teacher)
    if model is None:
        raise RequestError(f"{teacher} may serve several models; name one with --model")
    key = None
    if key_variable is not None:
        key = os.environ.get(key_variable)
        if not key:
            raise RequestError(f"{key_variable} is not set; export an API key under that name")
    return EndpointTeacher(teacher, model, key)


def _run(sampling: "Sampling", sieve: "Sieve") -> None:
    """Ask what is left under a bar; a signal ends the command with 128 + its number."""
    from contextlib import closing

    with (
        console.resumable() as stopping,
        console.progress("sampling", 1) as bar,
        closing(sampling.run(sieve)) as steps,
    ):
        for step in steps:
            note = f"{console.number(step.done)} of {console.number(step.total)} questions"
            if step.answers:
                note += f"  {step.good / step.answers:.0%} of the answers kept"
            bar.at(step.done, total=step.total, note=note)
            if stopping.signal is not None:
                break


VERBS = (
    Verb(
        sample,
        (
            "abyssal sample out/r1/zero --out out/r1/cold",
            "abyssal sample out/r1/reason --form chat --out out/r1/rejection --keep 2",
            'abyssal sample out/r1/zero --task "gcd max_value=50" --out out/gcd --questions 200',
            "abyssal sample http://127.0.0.1:8000 --model deepseek-reasoner --form chat"
            " --tokenizer out/r1/tokenizer --out out/r1/distill",
        ),
    ),
)
