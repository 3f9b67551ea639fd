"""The sandbox at work: every published solution of HumanEval and MBPP, held to its tests.

    python benchmarks/programs.py            all of them, and what one run costs

All must pass: what fails here would be counted against a model. MBPP's include those of the
training and prompt splits.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from abyssal.evals import data, programs, sandbox


def solutions() -> Iterator[tuple[str, str, str]]:
    """(task, program, tests) of everything published."""
    for row in data.rows("humaneval"):
        tests = f"{row['test']}\ncheck({row['entry_point']})"
        yield row["task_id"], row["prompt"] + row["canonical_solution"], tests
    for row in data.rows("mbpp"):
        tests = "\n".join([row["test_setup_code"], *row["test_list"]])
        yield f"mbpp-{row['task_id']}", row["code"], tests


def main() -> None:
    """Print what failed, how many passed, and how long it took."""
    print("held back by:", ", ".join(sandbox.isolation()))
    started, every = time.monotonic(), list(solutions())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = list(pool.map(lambda one: programs.passes(*one[1:]), every))
    elapsed_s = time.monotonic() - started
    failed = [name for (name, _, _), right in zip(every, passed, strict=True) if not right]
    print(
        f"{sum(passed)} of {len(every)} solutions pass; {1000 * elapsed_s / len(every):.0f} ms each"
    )
    print("failed:", ", ".join(failed) or "none")
    empty = [sandbox.run("").wall_s for _ in range(30)]
    print(f"an empty program takes {1000 * statistics.median(empty):.0f} ms (median of 30)")
    sys.exit(bool(failed))


main()
