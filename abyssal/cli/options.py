"""Arguments and options that several verbs share, and what their values stand for."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abyssal.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from abyssal.engine.llm import LLM
    from abyssal.engine.options import EngineOptions
    from abyssal.tokenizer.template import Layout

Folder = Annotated[str, typer.Argument(help="A model folder.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", metavar="N")]
Temperature = Annotated[float, typer.Option(help="0: always the most likely token.", metavar="T")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens only.", metavar="P")]
Seed = Annotated[
    int | None, typer.Option(help="Same seed, same answer; without one, a new one.", metavar="N")
]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")]
ChatLayout = Annotated[
    Literal["v3", "r1", "v3.1"] | None,
    typer.Option(help="Chat layout; without one, the folder's own."),
]
Thinking = Annotated[bool, typer.Option("--thinking", help="Let the model think first (v3.1, r1).")]
Draft = Annotated[
    int, typer.Option(help="Tokens the MTP module guesses ahead; same answers.", metavar="N")
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="To the bit the same, whoever else is being answered; slower."
    ),
]
CacheMemory = Annotated[
    str | None,
    typer.Option(help="Memory for cached tokens; without it, measured.", metavar="2GiB"),
]
CacheType = Annotated[
    Literal["bfloat16", "int8"] | None,
    typer.Option(
        "--cache-dtype", help="Precision of cached tokens; without one, the model's. int8: half."
    ),
]
MaxRunning = Annotated[int, typer.Option(help="Answers under way at once.", metavar="N")]
Json = Annotated[bool, typer.Option("--json", help="JSON objects, one a line, nothing else.")]

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for ending, base in (("B", 1000), ("iB", 1024))
}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def amount_of_bytes(text: str | None) -> int | None:
    """``2GiB``, ``500MB``, ``1.5 GiB`` or ``4096`` as bytes; None stays None.

    Raises:
        ConfigError: the text is no amount of memory.
    """
    if text is None:
        return None
    found = _AMOUNT.fullmatch(text.strip())
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if not found or found[2].lower() not in units:
        raise ConfigError(f"{text!r} is no amount of memory; write 2GiB or 500MB, say")
    return int(float(found[1]) * units[found[2].lower()])


def open_llm(folder: str, options: "EngineOptions | None" = None) -> "LLM":
    """The model of a folder, ready to answer."""
    check_folder(folder)
    from abyssal.engine.llm import LLM

    return LLM(folder, options=options)


def check_folder(folder: str) -> None:
    """Raise CheckpointError, with the way to a model, if there is no such folder."""
    if not Path(folder).is_dir():
        remedy = "run `make demo` first or name a model folder"
        raise CheckpointError(f"{folder}: no such folder; {remedy}")


def layout_for(folder: str, layout: "Layout | None") -> "Layout":
    """The layout named, or the one the folder's tokenizer was made for."""
    from abyssal.tokenizer.template import layout_of

    return layout or layout_of(Path(folder))
