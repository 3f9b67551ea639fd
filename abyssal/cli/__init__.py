"""The ``abyssal`` command: every verb parses, makes one library call, and shows the result.

A module of verbs lists them in ``VERBS``, and ``main.py`` gathers the lists into panels. No module
here imports torch at its top, so that ``--help`` answers at once.
"""

from collections.abc import Callable
from typing import NamedTuple


class Verb(NamedTuple):
    """A function for typer to make a command of, and complete command lines to show in its help."""

    function: Callable[..., None]
    examples: tuple[str, ...]


DEMO = "out/demo/model"  # the folder of verbs that are given none; `make demo` fills it
