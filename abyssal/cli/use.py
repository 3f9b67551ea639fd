"""The verb that has a model continue texts, or answer the rows of a file."""

from typing import TYPE_CHECKING, Annotated

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.cli.options import (
    CacheType,
    ChatLayout,
    Deterministic,
    Draft,
    Folder,
    Json,
    MaxTokens,
    Seed,
    Stop,
    Temperature,
    Thinking,
    TopP,
    check_folder,
    layout_for,
    open_llm,
)
from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal.engine.bulk import Bulk, Progress
    from abyssal.engine.llm import LLM
    from abyssal.engine.request import Completion, SamplingParams
    from abyssal.tokenizer.template import Layout

Prompt = Annotated[str | None, typer.Option(help="A text to continue.")]
Rows = Annotated[
    str | None,
    typer.Option(help='Rows {"prompt": ...} or {"messages": [...]} of a .jsonl; rows come out.'),
]
Out = Annotated[
    str | None,
    typer.Option(help="Write the rows to this .jsonl, or go on with it.", metavar="FILE"),
]


def generate(
    folder: Folder = DEMO,
    prompt: Prompt = None,
    file: Rows = None,
    out: Out = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    layout: ChatLayout = None,
    thinking: Thinking = False,
    draft: Draft = 0,
    cache_dtype: CacheType = None,
    deterministic: Deterministic = False,
    json: Json = False,
) -> None:
    """Continue a text, or answer all rows of a file together.

    A row may have an "id" and sampling values of its own ("max_tokens",
    "temperature", "stop" and so on). Answers come in the order of the rows,
    and row i draws with the seed N + i. A row that cannot be answered says so
    under "error", and the exit code is 1.

    With --out, rows that FILE has answered already are skipped, by their id or
    else by their place: after a stop, run the same command again. With --seed
    and --deterministic, FILE has the same bytes however often that was.
    """
    from abyssal.engine.options import EngineOptions
    from abyssal.engine.request import SamplingParams

    if (prompt is None) == (file is None):
        raise RequestError("expected either --prompt TEXT or --file PROMPTS.jsonl")
    if out is not None and file is None:
        raise RequestError("--out holds answers to the rows of a file; give --file PROMPTS.jsonl")
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    options = EngineOptions(draft=draft, cache_dtype=cache_dtype, deterministic=deterministic)
    check_folder(folder)
    if prompt is not None:
        _continue(open_llm(folder, options), prompt, params, json)
        return
    from abyssal.engine.bulk import Bulk
    from abyssal.engine.questions import Questions

    questions = Questions(file or "", params, thinking=thinking)
    with Bulk(questions, out) as bulk:
        _say_what_is_left(bulk)
        _answer(bulk, open_llm(folder, options), layout_for(folder, layout), json)


def _continue(llm: "LLM", prompt: str, params: "SamplingParams", as_json: bool) -> None:
    completion = llm.generate(prompt, params)
    if as_json:
        console.show_json({"prompt": prompt, **_row(completion)})
    else:
        console.write(f"{prompt}{completion.text}\n")


def _row(completion: "Completion") -> dict[str, object]:
    """What a line of JSON says of an answer."""
    names = ("text", "finish_reason", "prompt_tokens", "completion_tokens")
    return {name: getattr(completion, name) for name in names}


def _say_what_is_left(bulk: "Bulk") -> None:
    """What a person should know before a long run."""
    if bulk.questions.ignored:
        console.note(f"fields without a meaning here: {', '.join(sorted(bulk.questions.ignored))}")
    if bulk.file and bulk.answered:
        has, of = console.number(len(bulk.answered)), console.number(bulk.num_questions)
        console.note(f"{bulk.file.path} has {has} of {of} answers already")


def _answer(bulk: "Bulk", llm: "LLM", layout: "Layout", as_json: bool) -> None:
    """Answer what is left; a run stopped by a signal ends the command with 128 + its number."""
    from contextlib import closing

    from abyssal.train.stopping import Stopping

    left = bulk.num_questions - len(bulk.answered)
    progress = None
    with (
        Stopping() as stopping,
        console.progress("answering", left) as bar,
        closing(bulk.run(llm, layout)) as passes,
    ):
        for progress in passes:
            bar.at(progress.finished, total=left, note=_figures(progress, left))
            if bulk.file is None:
                for row in progress.rows:
                    console.show_json(row)
            if stopping.signal is not None:
                break
    if stopping.signal is not None:
        console.note("stopped; run the same command to go on" if bulk.file else "stopped")
        raise typer.Exit(128 + stopping.signal)
    failed = progress.failed if progress else 0
    if bulk.file is not None:
        tokens = progress.tokens if progress else 0
        done = {"file": bulk.file.path, "answers": bulk.num_questions, "new_answers": left}
        console.show({**done, "new_tokens": tokens, "new_errors": failed}, as_json=as_json)
    if failed:
        console.note(f'rows with an "error" in place of an answer: {console.number(failed)}')
        raise typer.Exit(1)


def _figures(progress: "Progress", left: int) -> str:
    """Rows and speed of a bulk run, in a line."""
    rows = f"{console.number(progress.finished)} of {console.number(left)} rows"
    return f"{rows}  {console.quantity(progress.tokens_per_s, 'tok/s')}"


VERBS = (
    Verb(
        generate,
        (
            'abyssal generate --prompt "Once upon a time"',
            "abyssal generate out/tiny/base --file prompts.jsonl --max-tokens 64 > answers.jsonl",
            "abyssal generate --file prompts.jsonl --out answers.jsonl --seed 1",
            'abyssal generate --prompt "One, two," --temperature 0 --stop "." --json',
        ),
    ),
)
