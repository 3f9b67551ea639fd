"""What a line with a slash does in a talk: `COMMANDS` has them all."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from abyssal.cli import console
from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal.cli.talk import Talk


def _system(talk: "Talk", rest: str) -> None:
    talk.conversation.system = rest or None


def _temperature(talk: "Talk", rest: str) -> None:
    conversation = talk.conversation
    try:
        value = float(rest)
    except ValueError:
        raise RequestError(f"/temperature {rest!r}, expected a number such as 0.7") from None
    conversation.params = replace(conversation.params, temperature=value)


def _think(talk: "Talk", rest: str) -> None:
    talk.thought.is_shown = not talk.thought.is_shown
    if talk.thought.is_shown:
        talk.thought.unfold()
    console.note("thoughts are shown" if talk.thought.is_shown else "thoughts are folded")


def _retry(talk: "Talk", rest: str) -> None:
    conversation = talk.conversation
    if conversation.params.temperature == 0:
        console.note("at temperature 0 the answer stays the same; /temperature 0.7 changes that")
    deltas = conversation.retry()
    talk.show(conversation.question or "", deltas)


def _save(talk: "Talk", rest: str) -> None:
    talk.conversation.save(_file("/save", rest))


def _load(talk: "Talk", rest: str) -> None:
    talk.conversation.load(_file("/load", rest))
    console.note(f"{console.number(len(talk.conversation.turns))} messages; go on, or /retry")


def _stats(talk: "Talk", rest: str) -> None:
    conversation = talk.conversation
    figures: dict[str, object] = {
        "latest": conversation.latest.to_dict(),
        "all": conversation.total.to_dict(),
    }
    stats = conversation.llm.engine.stats()
    if stats.drafted:
        figures["drafts"] = {"guessed": sum(stats.drafted), "right": sum(stats.accepted)}
    console.show(figures, as_json=talk.as_json)


def _reset(talk: "Talk", rest: str) -> None:
    talk.conversation.reset()


def _help(talk: "Talk", rest: str) -> None:
    rows = [
        (f"{name} {command.argument}".strip(), command.does) for name, command in COMMANDS.items()
    ]
    width = max(len(usage) for usage, _ in rows)
    for usage, does in rows:
        console.note(f"{usage:{width}}  {does}")


def _file(command: str, rest: str) -> str:
    if not rest:
        raise RequestError(f"{command} needs a file; write {command} talk.json")
    return rest


class Command(NamedTuple):
    """Something to do between two questions."""

    function: Callable[["Talk", str], None]
    argument: str
    does: str


COMMANDS = {
    "/system": Command(_system, "TEXT", "sets the system message; without a text, there is none"),
    "/temperature": Command(_temperature, "T", "0: always the most likely token"),
    "/retry": Command(_retry, "", "another answer to the last question"),
    "/think": Command(_think, "", "shows thoughts, or folds them"),
    "/save": Command(_save, "FILE", "writes all messages as JSON"),
    "/load": Command(_load, "FILE", "goes on from such a file"),
    "/stats": Command(_stats, "", "tokens, speed, cache hits and drafts"),
    "/reset": Command(_reset, "", "forgets the conversation, not the system message"),
    "/help": Command(_help, "", "lists the commands"),
    "/quit": Command(_help, "", "ends the talk"),
}
