"""All tasks by name. No torch."""

import difflib

from abyssal.data import corpus
from abyssal.errors import ConfigError, RequestError
from abyssal.evals import choice, generation
from abyssal.evals.task import About, Item, Task, TextTask


def _stories() -> list[Item]:
    return [Item(f"story-{i}", text, {}) for i, text in enumerate(corpus.stories("valid"))]


STORIES = TextTask(
    name="stories",
    about=About(
        source="TinyStories, Eldan and Li 2023: 300 stories that the shipped recipes never read",
        license="CDLA-Sharing-1.0",
        protocol="bits per byte of whole documents behind BOS, in windows of the context",
        chance=8.0,
    ),
    items=_stories,
)
_TASKS: dict[str, Task] = {task.name: task for task in (STORIES, *choice.TASKS, *generation.TASKS)}


def names() -> list[str]:
    """Every task there is, those of the other generators of reasoning-gym left out."""
    return [*_TASKS, *(f"{generation.PREFIX}{name}" for name in generation.GENERATORS)]


def task(name: str) -> Task:
    """The task of that name.

    Raises:
        RequestError: there is none.
    """
    if name in _TASKS:
        return _TASKS[name]
    if name.startswith(generation.PREFIX):
        try:
            return generation.puzzle_task(name.removeprefix(generation.PREFIX))
        except ConfigError as problem:
            raise RequestError(f"no task is named {name!r}: {problem}") from None
    near = difflib.get_close_matches(name, names(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise RequestError(f"no task is named {name!r}{hint} `abyssal eval --tasks list` shows all")


def tasks(wanted: str) -> list[Task]:
    """Tasks by names with commas between them, each once.

    Raises:
        RequestError: a name is unknown, or there is none.
    """
    found = [name.strip() for name in wanted.split(",") if name.strip()]
    if not found:
        raise RequestError("--tasks is empty; name some, as in --tasks blimp,arc_easy")
    return [task(name) for name in dict.fromkeys(found)]


def described() -> list[dict[str, object]]:
    """Name, items, chance, source, license, protocol and caveat of every task."""
    every = {name: (one.about, len(one.items())) for name, one in _TASKS.items()}
    for name in generation.GENERATORS:  # none is made: some take seconds
        about = generation.about_puzzles(name)
        every[f"{generation.PREFIX}{name}"] = about, generation.PUZZLES
    return [
        {
            "task": name,
            "items": items,
            "chance": about.chance,
            "source": about.source,
            "license": about.license,
            "protocol": about.protocol,
            "caveat": about.caveat,
        }
        for name, (about, items) in every.items()
    ]
