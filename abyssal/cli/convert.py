"""The verb that puts a model into fewer bits, and says what it costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abyssal.cli import Verb, console
from abyssal.cli.options import check_folder
from abyssal.errors import ConfigError

if TYPE_CHECKING:
    from abyssal.evals.fidelity import Fidelity
    from abyssal.quant.convert import Converted
    from abyssal.quant.formats import Format

NOTABLE_LOSS = 0.05  # bits per byte; more is worth a remark
_SHOWN = 10  # matrices in the table

Limit = Annotated[
    float | None,
    typer.Option(help="Bits per byte it may cost; beyond, no folder and exit code 1.", metavar="X"),
]
Text = Annotated[
    str | None,
    typer.Option(help="A .txt or .jsonl to measure on, not the demo's stories.", metavar="FILE"),
]


def convert(
    source: Annotated[Path, typer.Argument(help="A model folder in BF16, F16 or F32.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    int8: Annotated[bool, typer.Option("--int8", help="8 bits, a scale a row: half.")] = False,
    int4: Annotated[
        bool, typer.Option("--int4", help="4 bits, a scale for 64; the head in 8.")
    ] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="The released format: 128 by 128 blocks.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Measure what it costs.")] = True,
    text: Text = None,
    max_loss: Limit = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Put a model into 8 or 4 bits a weight, and say what that costs.

    Bits per byte before and after are measured on text the demo never trains
    on, or on --text, and the matrices whose outputs suffer most are listed.
    Every verb that takes a model folder takes the new one.
    """
    to = _format({"int8": int8, "int4": int4, "fp8": fp8})
    check_folder(str(source))
    if not check and (text or max_loss is not None):
        raise ConfigError("--text and --max-loss belong to the measurement; leave out --no-check")
    from abyssal.evals import fidelity
    from abyssal.quant.convert import convert as convert_folder

    texts = fidelity.held_out(text) if check else []
    found: list[Fidelity] = []

    with console.progress(f"{out} in {to}", 1) as bar:

        def progress(done: int, total: int) -> None:
            bar.at(done, total=total, note=console.quantity(done, "B"))

        def approve(draft: Path) -> None:
            if check:
                bar.at(1, total=1, note="measuring what it costs")
                found.append(fidelity.measure(source, draft, texts))
                _refuse(found[0], max_loss, out, json)

        made = convert_folder(source, out, to, approve=approve, progress=progress)
    _show(made, found[0] if found else None, json)


def _format(flags: "dict[Format, bool]") -> "Format":
    """The one format that is wished for."""
    chosen = [to for to, wished in flags.items() if wished]
    if len(chosen) != 1:
        given = " and ".join(f"--{to}" for to in chosen) or "no format"
        raise ConfigError(f"{given} given; expected one of --int8, --int4, --fp8")
    return chosen[0]


def _refuse(found: "Fidelity", max_loss: float | None, out: Path, as_json: bool) -> None:
    """End the command, before the folder appears, where the loss is above the limit."""
    if max_loss is None:
        return
    if found.loss is None:
        raise ConfigError(f"--max-loss cannot be checked: {found.unmeasured}; leave it out")
    if found.loss > max_loss:
        if as_json:
            console.show_json({"folder": None, **_figures(found)})
        else:
            _show_fidelity(found)
        console.note(
            f"{found.loss:.4f} bits per byte are lost, {max_loss:g} allowed; {out} is not written"
        )
        raise typer.Exit(1)


def _show(made: "Converted", found: "Fidelity | None", as_json: bool) -> None:
    if made.short_groups:
        count = console.number(made.short_groups)
        console.note(
            f"{count} matrices have rows that end in less than a group of 64 inputs; "
            "other programs may want whole groups only"
        )
    if as_json:
        console.show_json(made if found is None else {**_plain(made), **_figures(found)})
        return
    console.show(made, as_json=False)
    if found is not None:
        _show_fidelity(found)
        if found.loss is not None and found.loss > NOTABLE_LOSS:
            console.note(
                f"more than {NOTABLE_LOSS} bits per byte lost; --int8 or --fp8 lose less than "
                "--int4, and --max-loss X refuses what loses more than X"
            )


def _plain(made: "Converted") -> dict[str, object]:
    from dataclasses import asdict

    return asdict(made)


def _figures(found: "Fidelity") -> dict[str, object]:
    return {
        "bits_per_byte_before": found.before,
        "bits_per_byte_after": found.after,
        "loss": found.loss,
        "unmeasured": found.unmeasured,
        "worst": found.matrices[:_SHOWN],
    }


def _show_fidelity(found: "Fidelity") -> None:
    if found.before is None or found.after is None:
        console.note(f"not measured: {found.unmeasured}")
    else:
        console.say(
            f"\nbits per byte  {found.before:.4f} before, {found.after:.4f} after: "
            f"{found.after - found.before:+.4f}\n"
        )
    rows = [
        (
            error.name,
            f"{error.weight_error:.2%}",
            "-" if error.output_error is None else f"{error.output_error:.2%}",
        )
        for error in found.matrices[:_SHOWN]
    ]
    console.table("the matrices that suffer most", ("", "weights", "outputs"), rows)


VERBS = (
    Verb(
        convert,
        (
            "abyssal convert out/demo/model out/demo/int8 --int8",
            "abyssal convert DeepSeek-V3-bf16 DeepSeek-V3-int4 --int4 --text held-out.jsonl",
            "abyssal convert out/demo/model out/demo/fp8 --fp8 --max-loss 0.01 --json",
        ),
    ),
)
