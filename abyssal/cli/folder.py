"""The verb that says what a model folder holds and whether it is whole."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abyssal.cli import DEMO, Verb, console
from abyssal.cli.options import check_folder

if TYPE_CHECKING:
    from abyssal.checkpoint.survey import Survey


def info(
    folder: Annotated[Path, typer.Argument(help="A model folder.")] = Path(DEMO),
    verify: Annotated[
        bool, typer.Option(help="Hash every file, and compare with the manifest.")
    ] = True,
    machine: Annotated[
        bool, typer.Option("--machine", help="This machine instead of a folder.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Say what a model folder holds and all that is wrong with it, or what this machine can do.

    Only headers of the weights are read, so any folder will do on any machine;
    hashing reads the files once, piece by piece. Exit code 1: the folder is
    broken, and each fault is said in a line, with what to do.
    """
    if machine:
        console.show(_machine(), as_json=json)
        return
    check_folder(str(folder))
    from abyssal.quant.inspection import inspect

    with console.progress(f"hashes of {folder}", 1) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.at(done, total=total, note=name)

        found = inspect(folder, verify=verify, progress=progress)
    _show(found, json)
    if found.faults:
        raise typer.Exit(1)


def _show(found: "Survey", as_json: bool) -> None:
    if as_json:
        console.show_json({**found.facts, "whole": not found.faults, "faults": found.faults})
        return
    plain = {name: value for name, value in found.facts.items() if not isinstance(value, dict)}
    console.show(plain, as_json=False)
    for name in ("bytes_by_type", "quantized"):
        amounts = found.facts.get(name)
        if isinstance(amounts, dict) and amounts:
            unit = "B" if "bytes" in name else ""
            rows = [
                (kind, console.quantity(n, unit) if unit else console.number(n))
                for kind, n in amounts.items()
            ]
            console.table(name, ("", ""), rows)
    for fault in found.faults:
        console.say(f"broken: {fault.what}; {fault.remedy}")
    if found.faults:
        console.note(f"{len(found.faults):,} faults; this folder will not load as it is")


def _machine() -> dict[str, object]:
    import torch

    from abyssal.kernels import registry
    from abyssal.train.machine import measure

    found = measure()
    return {
        "torch": torch.__version__,
        "device": str(found.device),
        "threads": found.threads,
        "cores": os.cpu_count(),
        "precision": str(found.dtype).removeprefix("torch."),
        "peak_flops": found.peak_flops,
        "kernels": registry.status()._asdict(),
    }


VERBS = (
    Verb(
        info,
        (
            "abyssal info out/demo/model",
            "abyssal info DeepSeek-V3 --no-verify --json",
            "abyssal info --machine",
        ),
    ),
)
