"""Published figures beside ours: every arithmetic or algorithmic claim as an executed check.

    python benchmarks/claims.py [--json]        `make claims`

A claim is computed by the package's public functions, never copied from the paper into both
columns. Statistical claims belong to runs over seeds and are not here (docs/log.md). What is not
built is listed as such, and not as passed. Ends with 1 where a claim fails.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from claimed import algorithms, arithmetic, stages
from claimed.row import Row


class Group(NamedTuple):
    """Claims about one thing."""

    name: str
    rows: Callable[[], Iterator[Row]]


GROUPS = (
    Group("parameters", arithmetic.parameters),
    Group("released folder", arithmetic.released_folder),
    Group("latent cache", arithmetic.caches),
    Group("FLOPs per token", arithmetic.flops),
    Group("cost", arithmetic.costs),
    Group("service", arithmetic.service),
    Group("pipelines", arithmetic.pipelines),
    Group("pipelines, run", stages.pipelined),
    Group("expert placement", arithmetic.placement),
    Group("routing and balance", algorithms.routing),
    Group("YaRN", algorithms.yarn),
    Group("GRPO", algorithms.grpo),
    Group("FP8", algorithms.fp8),
    Group("decoding", algorithms.decoding),
    Group("not built", algorithms.not_built),
)


def main() -> None:
    """Check all, print the table, and end with 1 where a claim fails."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    as_json = options.parse_args().json
    began = time.monotonic()
    found = [(group.name, row) for group in GROUPS for row in group.rows()]
    failed = [row for _, row in found if row.ok is False]
    if as_json:
        rows = [{"group": name, **row.to_dict()} for name, row in found]
        print(json.dumps({"claims": rows, "failed": len(failed)}, ensure_ascii=False))
    else:
        _print(found)
        passed = sum(row.ok is True for _, row in found)
        print(f"\n{passed} hold, {len(failed)} fail, {sum(row.ok is None for _, row in found)} "
              f"not built; {time.monotonic() - began:.0f} s")  # fmt: skip
    sys.exit(1 if failed else 0)


def _print(found: list[tuple[str, Row]]) -> None:
    """A table as wide as its longest cells."""
    head = ("", "claim", "published", "ours", "difference", "ok")
    lines, last = [head], ""
    for name, row in found:
        lines.append((name if name != last else "", *row.cells()))
        last = name
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (
            cell.rjust(width) if 2 <= i <= 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main()
