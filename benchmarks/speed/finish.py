"""The end of a run: its tables on the screen and in the folder of results, and its plots."""

import json
from pathlib import Path
from typing import Any

from speed.bench import Bench
from speed.report import plots, tables


def finish(bench: Bench) -> None:
    """Show what was measured, and leave it in the folder of results."""
    _write([figure.report() for figure in bench.figures], bench.args.out)


def show(file: str, out: Path) -> None:
    """The same for the figures of an earlier run, or of several one after the other."""
    lines = Path(file).read_text().splitlines()
    found = [json.loads(line) for line in lines]
    keys = ("row", "model", "engine", "kind", "size")
    latest = {tuple(report[key] for key in keys): report for report in found}
    _write(list(latest.values()), out)


def _write(reports: list[dict[str, Any]], out: Path) -> None:
    if not reports:
        print("nothing was measured")
        return
    text = tables(reports)
    (out / "tables.md").write_text(text)
    print(text)
    for path in plots(reports, out):
        print(path)
