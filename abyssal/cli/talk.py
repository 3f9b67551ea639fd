"""The verb that talks: questions typed or piped in, answers as they come, commands with a slash."""

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated, Self

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.cli.options import (
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
from abyssal.cli.slash import COMMANDS
from abyssal.errors import AbyssalError

if TYPE_CHECKING:
    from abyssal.engine.conversation import Conversation, Deltas
    from abyssal.engine.request import Delta


def chat(
    folder: Folder = DEMO,
    prompt: Annotated[str | None, typer.Option(help="Ask this, answer, and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = None,
    stop: Stop = None,
    layout: ChatLayout = None,
    thinking: Thinking = False,
    draft: Draft = 0,
    deterministic: Deterministic = False,
    json: Json = False,
) -> None:
    """Talk in the terminal; from a pipe, one line is one turn.

    Inside, /help lists the commands: another system message or temperature,
    another answer, saving and loading the talk, figures of its speed.
    Ctrl-C ends an answer, not the talk.
    """
    from abyssal.engine.conversation import Conversation
    from abyssal.engine.options import EngineOptions
    from abyssal.engine.request import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
    )
    check_folder(folder)
    layout = layout_for(folder, layout)
    llm = open_llm(folder, EngineOptions(draft=draft, deterministic=deterministic))
    is_typed = prompt is None and sys.stdin.isatty()
    talk = Talk(Conversation(llm, params, system, layout, thinking), json, is_typed)
    if prompt is not None:
        talk.show(prompt, talk.conversation.ask(prompt))
        return
    for line in _lines():
        try:
            talk.turn(line)
        except AbyssalError as problem:
            console.fail(problem)


class Talk:
    """A conversation, and how it is shown."""

    def __init__(self, conversation: "Conversation", as_json: bool, is_typed: bool):
        self.conversation, self.as_json, self.is_typed = conversation, as_json, is_typed
        self.thought = Thought(is_shown=False)  # behind the latest answer

    def turn(self, line: str) -> None:
        """Do what a line says: nothing, a command, or a question."""
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name in COMMANDS:
                COMMANDS[name].function(self, rest.strip())
            else:
                console.note(f"{name} is no command; there are {', '.join(COMMANDS)}")
        elif line:
            self.show(line, self.conversation.ask(line))

    def show(self, question: str, deltas: "Deltas") -> None:
        """An answer as it comes.

        A signal ends it, and the talk too, unless it is Ctrl-C of somebody who types.
        """
        from abyssal.train.stopping import Stopping

        if dropped := self.conversation.num_dropped:
            console.note(f"the context is full: dropped the {dropped} oldest messages")
        self.thought = Thought(self.thought.is_shown)
        read = []
        with Stopping() as stopping, closing(deltas), self.thought:
            for delta in deltas:
                read.append(delta)
                if not self.as_json:
                    self._show_piece(delta)
                if stopping.signal is not None:
                    break
        if self.as_json:
            self._show_row(question, read)
        else:
            self._end_answer()
        if stopping.signal is not None and not (self.is_typed and stopping.signal == SIGINT):
            raise typer.Exit(128 + stopping.signal)

    def _show_piece(self, delta: "Delta") -> None:
        if delta.reasoning or (self.thought.is_open and not delta.text):  # half a character, say
            self.thought.add(delta.reasoning)
        if delta.text:
            self.thought.end()
            console.write(delta.text)

    def _end_answer(self) -> None:
        console.write("\n")
        for call in self.conversation.turns[-1].tool_calls:
            console.note(f"it calls {call.name}({call.arguments})")

    def _show_row(self, question: str, deltas: "list[Delta]") -> None:
        row: dict[str, object] = {
            "prompt": question,
            "text": "".join(delta.text for delta in deltas),
            "finish_reason": deltas[-1].finish_reason,
        }
        reasoning = "".join(delta.reasoning for delta in deltas)
        if reasoning or self.conversation.thinking:
            row["reasoning"] = reasoning
        console.show_json(row)


class Thought:
    """What a model thinks before it answers: dim where it is shown, one line where it is folded."""

    def __init__(self, is_shown: bool):
        self.is_shown = is_shown
        self.text = ""
        self._tokens = 0
        self.is_open = False
        self._fold = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def add(self, piece: str) -> None:
        """The next piece, one token."""
        if not self.is_open and not self.is_shown:
            self._update = self._fold.enter_context(console.folded("thinking"))
        self.is_open = True
        self.text += piece
        self._tokens += 1
        if self.is_shown:
            console.murmur(piece)
        else:
            self._update(f"thinking, {console.number(self._tokens)} tokens")

    def end(self) -> None:
        """Nothing more comes, or the answer does."""
        if not self.is_open:
            return
        self.is_open = False
        self._fold.close()
        if self.is_shown:
            console.murmur("" if self.text.endswith("\n") else "\n")
        else:
            console.note(f"thought {console.number(self._tokens)} tokens; /think shows them")

    def unfold(self) -> None:
        """Show all of it at once."""
        if self.text:
            console.note(console.harmless(self.text.strip()))


def _lines() -> Iterator[str]:
    """Turns typed or piped in, until /quit or the end of input."""
    typed = sys.stdin.isatty()
    if typed:
        console.note("/help lists the commands, /quit ends")
        _complete_commands()
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    while True:
        try:
            line = input("> ") if typed else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if (not line and not typed) or line.strip() == "/quit":
            return
        yield line.strip()


def _complete_commands() -> None:
    """Arrow keys bring earlier lines back and Tab completes commands, where readline is there."""
    try:
        import readline
    except ImportError:
        return

    def complete(text: str, state: int) -> str | None:
        found = [f"{name} " for name in COMMANDS if name.startswith(text)]
        return found[state] if text and state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


VERBS = (
    Verb(
        chat,
        (
            "abyssal chat",
            'abyssal chat out/demo/model --prompt "Who are you?" --seed 1',
            "abyssal chat < questions.txt",
        ),
    ),
)
