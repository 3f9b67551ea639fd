"""The verb that looks for needles: whether a model finds a key anywhere in a long text."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.cli.options import Folder, Json, check_folder
from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal.config import RopeScaling
    from abyssal.engine.llm import LLM
    from abyssal.evals.needle import Search


def needle(
    folder: Folder = DEMO,
    lengths: Annotated[
        str, typer.Option(help="Tokens of prompt and key together.", metavar="N,N,...")
    ] = "512",
    depths: Annotated[
        int, typer.Option(help="Places of the key, evenly from first to last.", metavar="N")
    ] = 11,
    trials: Annotated[int, typer.Option(help="Keys at each length and depth.", metavar="N")] = 5,
    keys: Annotated[
        Literal["numbers", "words"], typer.Option(help="What is hidden: five digits, or a word.")
    ] = "numbers",
    rope: Annotated[
        str | None,
        typer.Option(
            help="Positions changed without training: yarn:4, or linear:4 (interpolation).",
            metavar="TYPE:FACTOR",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where it goes, or goes on; without it, FOLDER/eval/needle.", metavar="DIR"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same keys and texts.", metavar="N")] = 0,
    json: Json = False,
) -> None:
    """See whether a model finds a key hidden in a long text, by length and depth.

    Found is what the model writes (exact), or thinks the likeliest of ten
    (choice). Lengths may go beyond what the model was trained to read: that
    is how it is seen where it ends. Every trial is a line in DIR; after a
    stop, run the same command again.
    """
    check_folder(folder)
    from abyssal.evals.needle import Search, evenly, opened

    what = Search(
        lengths=_lengths(lengths), depths=evenly(depths), trials=trials, keys=keys, seed=seed
    )
    llm = opened(folder, max(what.lengths), _scaling(folder, rope))
    _search(llm, folder, out or f"{folder}/eval/needle", what, json)


def _search(llm: "LLM", folder: str, out: str, what: "Search", as_json: bool) -> None:
    """All trials under a bar, then the maps; a signal ends the command with 128 + its number."""
    import json
    from contextlib import closing
    from pathlib import Path

    from abyssal.evals.needle import METRICS, NAME, search, table
    from abyssal.evals.page import write_page
    from abyssal.evals.records import RESULTS

    with (
        console.resumable() as stopping,
        closing(search(llm, folder, out, what)) as steps,
        console.progress(NAME, 1) as bar,
    ):
        for step in steps:
            found = ", ".join(f"{name} {share:.0%}" for name, share in step.found.items())
            bar.at(step.done, total=step.total, note=found)
            if stopping.signal is not None:
                break
    results: dict[str, Any] = json.loads((Path(out) / RESULTS).read_bytes())
    page = write_page(out, "Needle in a haystack")
    if as_json:
        console.show_json(results)
        return
    for metric in METRICS:
        header, *rows = table(results, metric)
        console.table(f"{metric}, %", header, rows)
    if max(what.lengths) > results["context"]:
        console.note(
            f"{folder} was made to read {console.number(results['context'])} tokens; "
            "what is longer shows how it fares beyond"
        )
    console.note(f"trials and results.json: {out}; as a page: {page}")


def _lengths(text: str) -> tuple[int, ...]:
    """``512,2048`` as numbers."""
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise RequestError(f"lengths={text!r}, expected whole numbers such as 512,2048")
    return tuple(map(int, parts))


def _scaling(folder: str, text: str | None) -> "RopeScaling | None":
    """``yarn:4`` as scaling from what the folder was first trained to read."""
    if text is None:
        return None
    from abyssal.config import ModelConfig, RopeScaling

    kind, _, factor = text.partition(":")
    if kind not in ("yarn", "linear") or not factor.replace(".", "", 1).isdecimal():
        raise RequestError(f"rope={text!r}, expected a type and a factor: yarn:4 or linear:4")
    config = ModelConfig.load(folder)
    before = config.rope_scaling
    original = config.max_position_embeddings
    return RopeScaling(
        type="linear" if kind == "linear" else "yarn",
        factor=float(factor),
        original_max_position_embeddings=(
            before.original_max_position_embeddings if before else original
        ),
    )


VERBS = (
    Verb(
        needle,
        (
            "abyssal needle out/long/base --lengths 512,2048",
            "abyssal needle out/long/base --lengths 2048 --rope yarn:4 --out out/long/yarn",
            "abyssal needle --keys words --depths 5 --json",
        ),
    ),
)
