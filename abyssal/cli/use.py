"""Verbs that use a model: continue texts, talk, and measure how well it predicts."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.errors import CheckpointError, DataError, RequestError

if TYPE_CHECKING:
    from abyssal.engine.conversation import Conversation
    from abyssal.engine.llm import LLM
    from abyssal.engine.request import Completion

ESCAPE = {0x1B: "␛"}  # what a model writes must not steer the terminal
COMMANDS = "/reset forgets the conversation, /system TEXT sets the system message, /quit ends"

Folder = Annotated[str, typer.Argument(help="A model folder.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", metavar="N")]
Temperature = Annotated[float, typer.Option(help="0: always the most likely token.", metavar="T")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens only.", metavar="P")]
Seed = Annotated[
    int | None, typer.Option(help="Same seed, same answer; without one, a new one.", metavar="N")
]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="JSON objects, one a line, nothing else.")]


def generate(
    folder: Folder = DEMO,
    prompt: Annotated[str | None, typer.Option(help="A text to continue.")] = None,
    file: Annotated[
        str | None, typer.Option(help='Rows {"prompt": ...} of a .jsonl; rows come out.')
    ] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    json: Json = False,
) -> None:
    """Continue a text, or all prompts of a file together."""
    if (prompt is None) == (file is None):
        raise RequestError("expected either --prompt TEXT or --file PROMPTS.jsonl")
    prompts = [prompt] if prompt is not None else _read_prompts(Path(file or ""))
    completions = _open(folder).generate(
        prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        progress=file is not None and console.err().is_terminal,
    )
    for text, completion in zip(prompts, completions, strict=True):
        if json or file is not None:
            console.show_json({"prompt": text, **_row(completion)})
        else:
            print(text + _visible(completion.text))


def chat(
    folder: Folder = DEMO,
    prompt: Annotated[str | None, typer.Option(help="Ask this, answer, and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = None,
    stop: Stop = None,
    json: Json = False,
) -> None:
    """Talk in the terminal; from a pipe, one line is one turn.

    Inside: /reset forgets the conversation, /system TEXT sets the system message, /quit ends.
    """
    from abyssal.engine.conversation import Conversation
    from abyssal.engine.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    conversation = Conversation(_open(folder), params, system)
    if prompt is not None:
        _answer(conversation, prompt, json)
        return
    for line in _lines():
        if line == "/quit":
            return
        if line.startswith("/"):
            _obey(conversation, line)
        elif line:
            try:
                _answer(conversation, line, json)
            except RequestError as problem:
                console.fail(problem)


def eval(
    folder: Folder = DEMO,
    bpb: Annotated[
        str | None, typer.Option(help="A .txt or .jsonl file to predict.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Measure how many bits a model needs per byte of text."""
    if bpb is None:
        raise RequestError("nothing to evaluate; give --bpb FILE")
    from abyssal.evals.harness import bits_per_byte_of_file

    llm = _open(folder)
    result, report = bits_per_byte_of_file(llm, bpb)
    if report.dropped:
        console.note(report.summary())
    names = ("bits_per_byte", "bytes", "tokens", "documents")
    found = {name: getattr(result, name) for name in names}
    if json:
        console.show_json(found)
    else:
        console.say(f"bits per byte  {result.bits_per_byte:.4f}")
        rest = ", ".join(f"{console.number(found[name])} {name}" for name in names[1:])
        console.note(f"{rest}; perplexity {result.perplexity:.2f} per token")


def _open(folder: str) -> "LLM":
    if not Path(folder).is_dir():
        remedy = "run `make demo` first or name a model folder"
        raise CheckpointError(f"{folder}: no such folder; {remedy}")
    from abyssal.engine.llm import LLM

    return LLM(folder)


def _read_prompts(path: Path) -> list[str]:
    """The prompt of every row; one that cannot be used stops the run before it begins."""
    from abyssal.data.records import ROW_SUFFIXES, find_files, read_rows

    prompts = []
    rows = [row for found in find_files(path, ROW_SUFFIXES).files for row in read_rows(found)]
    for where, row, fault in rows:
        prompt = row.get("prompt")
        if fault == "blank line":
            continue
        if fault or not isinstance(prompt, str):
            fault = fault or 'no text under "prompt"'
            raise DataError(f'{where}: {fault}; expected a JSON object {{"prompt": "..."}}')
        prompts.append(prompt)
    return prompts


def _row(completion: "Completion") -> dict[str, object]:
    """What a line of JSON says of an answer."""
    names = ("text", "finish_reason", "prompt_tokens")
    kept = {name: getattr(completion, name) for name in names}
    return {**kept, "completion_tokens": completion.completion_tokens}


def _lines() -> Iterator[str]:
    """Turns typed or piped in, until the end of input."""
    typed = sys.stdin.isatty()
    if typed:
        console.note(COMMANDS)
    while True:
        try:
            line = input("> ") if typed else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not line and not typed:
            return
        yield line.strip()


def _obey(conversation: "Conversation", line: str) -> None:
    command, _, rest = line.partition(" ")
    if command == "/reset":
        conversation.reset()
    elif command == "/system":
        conversation.system = rest.strip() or None
    else:
        console.note(f"{command} is no command: {COMMANDS}")


def _answer(conversation: "Conversation", text: str, as_json: bool) -> None:
    """Ask, and show the answer as it comes; Ctrl-C ends the answer, not the talk."""
    deltas = conversation.ask(text)
    if conversation.num_dropped:
        console.note(f"the context is full: dropped the {conversation.num_dropped} oldest messages")
    if as_json:
        pieces = list(deltas)
        answer = "".join(delta.text for delta in pieces)
        reason = pieces[-1].finish_reason
        console.show_json({"prompt": text, "text": answer, "finish_reason": reason})
        return
    try:
        for delta in deltas:
            print(_visible(delta.text), end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()


def _visible(text: str) -> str:
    return text.translate(ESCAPE) if sys.stdout.isatty() else text


VERBS = (
    Verb(
        generate,
        (
            'abyssal generate --prompt "Once upon a time"',
            "abyssal generate out/tiny/base --file prompts.jsonl --max-tokens 64 > answers.jsonl",
            'abyssal generate --prompt "One, two," --temperature 0 --stop "." --json',
        ),
    ),
    Verb(
        chat,
        (
            "abyssal chat",
            'abyssal chat out/demo/model --prompt "Who are you?" --seed 1',
            "abyssal chat < questions.txt",
        ),
    ),
    Verb(eval, ("abyssal eval --bpb story.txt", "abyssal eval out/tiny/base --bpb t.jsonl --json")),
)
