"""The app: verbs gathered into panels; what a person can mend becomes one red line and exit code 2.

Exit codes: 0 done, 1 an evaluation or check failed, 2 the user can mend it, anything else is a bug.
"""

import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

import abyssal
from abyssal.cli import (
    Verb,
    build,
    console,
    convert,
    evaluate,
    folder,
    needle,
    plan,
    sample,
    service,
    speed,
    talk,
    use,
)
from abyssal.errors import AbyssalError

PANELS: dict[str, Iterable[Verb]] = {
    "Build": (*build.VERBS, *sample.VERBS, *convert.VERBS),
    "Use": (*talk.VERBS, *use.VERBS, *service.VERBS),
    "Measure": (*evaluate.VERBS, *needle.VERBS, *folder.VERBS, *plan.VERBS, *speed.VERBS),
}


def main() -> None:
    """Run the command line of this process, and exit with its code."""
    try:
        build_app()(prog_name="abyssal")
    except AbyssalError as problem:
        if _speaks():
            console.fail(problem)
        sys.exit(2)


def _speaks() -> bool:
    """Whether this process says what went wrong: one of several does, the first it happens to."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from abyssal.parallel.ranks import speaks_for_all

    return speaks_for_all()


def build_app() -> typer.Typer:
    """Every verb under its panel, with its examples."""
    app = typer.Typer(
        name="abyssal",
        help="DeepSeek-V3 from raw text to a chat.",
        epilog=_epilog("abyssal plan deepseek-v3", "abyssal plan --help"),
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # a bug shows Python's own traceback
    )
    app.callback()(_options)
    for panel, verbs in PANELS.items():
        for verb in verbs:
            summary, _, _ = (verb.function.__doc__ or "").partition("\n")
            command = app.command(
                short_help=summary, rich_help_panel=panel, epilog=_epilog(*verb.examples)
            )
            command(verb.function)
    return app


def _epilog(*examples: str) -> str:
    """Examples as the terminal and Markdown both lay them out."""
    return "Examples:\n\n" + "\n".join(f"    {example}" for example in examples)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.say(f"abyssal {abyssal.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
) -> None:
    """What stands before the verb."""
