"""The command reference in Markdown, written from the commands themselves.

``make docs`` puts it into docs/cli.md; a test fails when that file is stale.
"""

import sys

import typer
from typer.cli import get_docs_for_click

from abyssal.cli.main import build_app


def reference() -> str:
    """docs/cli.md: every verb with its arguments, options and examples."""
    command = typer.main.get_command(build_app())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="abyssal")
    return f"{text.strip()}\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
