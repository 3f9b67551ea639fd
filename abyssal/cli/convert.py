"""The verb that puts a model into another format, and says what it costs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from abyssal.cli import Verb, console
from abyssal.cli.options import amount_of_bytes, check_folder
from abyssal.errors import ConfigError

if TYPE_CHECKING:
    from abyssal.evals.fidelity import Fidelity
    from abyssal.quant.convert import Converted, Progress
    from abyssal.quant.formats import Format

NOTABLE_LOSS = 0.05  # bits per byte; more is worth a remark
ROUNDS = ("fp8", "int8", "int4")  # what is measured
_SHOWN = 10  # matrices in the table

Limit = Annotated[
    float | None,
    typer.Option(help="Bits per byte it may cost; beyond, no folder and exit code 1.", metavar="X"),
]
Text = Annotated[
    str | None,
    typer.Option(help="A .txt or .jsonl to measure on, not the demo's stories.", metavar="FILE"),
]


Kind = Annotated[
    Literal["bf16", "f16", "f32", "q8_0", "q4_0"],
    typer.Option(help="How a GGUF's matrices are stored."),
]
ShardSize = Annotated[
    str | None,
    typer.Option(help="Largest shard; alone: the same weights in other shards.", metavar="5GB"),
]


def convert(
    source: Annotated[Path, typer.Argument(help="A model folder.")],
    out: Annotated[Path, typer.Argument(help="Folder, or GGUF file, to write; must not exist.")],
    bf16: Annotated[bool, typer.Option("--bf16", help="FP8 can come back from it.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="32 bits, everything.")] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="The released format: 128 by 128 blocks.")
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8 bits, a scale a row: half.")] = False,
    int4: Annotated[
        bool, typer.Option("--int4", help="4 bits, a scale for 64; the head in 8.")
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="One file for llama.cpp, MTP module included.")
    ] = False,
    gguf_type: Kind = "bf16",
    shard_size: ShardSize = None,
    check: Annotated[bool, typer.Option(help="Measure what it costs.")] = True,
    text: Text = None,
    max_loss: Limit = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Put a model into another format or other shards, and say what that costs.

    No more than two shards are in memory, whatever the folder's size. Stopped,
    even killed, the same command goes on with the shards that are whole; the
    folder appears in one step, verified by hash. FP8 made into BF16 and back
    is the same to the byte.

    Where weights are rounded, bits per byte before and after are measured on
    text the demo never trains on, or on --text, and the matrices whose outputs
    suffer most are listed. Every verb that takes a model folder takes the new one.
    """
    flags = {"bf16": bf16, "fp32": fp32, "fp8": fp8, "int8": int8, "int4": int4, "gguf": gguf}
    shard_bytes = amount_of_bytes(shard_size)
    to = _format(flags, shard_bytes)
    check_folder(str(source))
    _refuse_limits(to, check, text, max_loss)
    if to == "gguf":
        _export(source, out, gguf_type, json)
    else:
        texts = _to_measure(source, text, max_loss) if check and to in ROUNDS else None
        _convert(source, out, cast("Format | None", to), shard_bytes, texts, max_loss, json)


def _convert(
    source: Path,
    out: Path,
    to: "Format | None",
    shard_bytes: int | None,
    texts: list[str] | None,
    max_loss: float | None,
    as_json: bool,
) -> None:
    """One folder of another, measured on texts where there are some."""
    from abyssal.evals import fidelity
    from abyssal.quant.convert import convert as convert_folder

    found: list[Fidelity] = []
    with _shown(f"{out} in {to or 'other shards'}") as (bar, progress):

        def approve(draft: Path) -> None:
            if texts is not None:
                bar.at(1, total=1, note="measuring what it costs")
                found.append(fidelity.measure(source, draft, texts))
                _refuse(found[0], max_loss, out, as_json)

        made = convert_folder(
            source, out, to, approve=approve, progress=progress, max_shard_bytes=shard_bytes
        )
    _show(made, found[0] if found else None, as_json)


def _export(source: Path, out: Path, kind: str, as_json: bool) -> None:
    """One GGUF file of a folder."""
    from abyssal.quant import gguf_file

    with _shown(f"{out} in {kind}") as (_, progress):
        made = gguf_file.export(source, out, kind, progress=progress)
    console.show(made, as_json=as_json)


class _Stopped(Exception):
    """A signal came: what is whole stays, and the same command goes on with it."""


@contextmanager
def _shown(what: str) -> "Iterator[tuple[console.Bar, Progress]]":
    """A bar, and what moves it between two tensors; a signal ends the work there."""
    with console.resumable() as stopping:
        try:
            with console.progress(what, 1) as bar:

                def progress(done: int, total: int, now: str) -> None:
                    if stopping.signal is not None:
                        raise _Stopped
                    bar.at(done, total=total, note=f"{console.quantity(done, 'B')}, {now}")

                yield bar, progress
        except _Stopped:
            return


def _format(flags: dict[str, bool], shard_bytes: int | None) -> str | None:
    """The one format that is wished for; None for other shards only."""
    chosen = [to for to, wished in flags.items() if wished]
    if len(chosen) > 1 or (not chosen and shard_bytes is None):
        given = " and ".join(f"--{to}" for to in chosen) or "no format"
        raise ConfigError(
            f"{given} given; expected one of {', '.join(f'--{to}' for to in flags)}, "
            "or --shard-size alone"
        )
    if chosen == ["gguf"] and shard_bytes is not None:
        raise ConfigError("--shard-size given, but --gguf writes one file; leave it out")
    if shard_bytes is not None and shard_bytes < 1:
        raise ConfigError("--shard-size 0 given; expected an amount such as 5GB")
    return chosen[0] if chosen else None


def _refuse_limits(to: str | None, check: bool, text: str | None, max_loss: float | None) -> None:
    """Raise ConfigError where --text or --max-loss would have no effect."""
    if text is None and max_loss is None:
        return
    if not check:
        raise ConfigError("--text and --max-loss belong to the measurement; leave out --no-check")
    if to not in ROUNDS:
        raise ConfigError(
            "--text and --max-loss belong to what is measured: "
            f"{', '.join(f'--{name}' for name in ROUNDS)}; leave them out"
        )


def _to_measure(source: Path, text: str | None, max_loss: float | None) -> list[str] | None:
    """Texts to measure on; None, said before hours of work, where the model does not fit."""
    from abyssal.evals import fidelity

    reason = fidelity.too_large(source)
    if reason is None:
        return fidelity.held_out(text)
    if text is not None or max_loss is not None:
        raise ConfigError(f"--text and --max-loss cannot be obeyed: {reason}; leave them out")
    console.note(f"what it costs will not be measured: {reason}")
    return None


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
            "abyssal convert DeepSeek-V3 DeepSeek-V3-bf16 --bf16 --shard-size 10GB",
            "abyssal convert DeepSeek-V3-bf16 DeepSeek-V3-int4 --int4 --text held-out.jsonl",
            "abyssal convert out/demo/model demo.gguf --gguf --gguf-type q8_0",
            "abyssal convert out/demo/model out/demo/fp8 --fp8 --max-loss 0.01 --json",
        ),
    ),
)
