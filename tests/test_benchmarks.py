"""What the benchmarks run can be made from nothing; their figures are no matter of tests."""

import subprocess
import sys
from pathlib import Path

from abyssal.quant.inspection import inspect

ROOT = Path(__file__).parents[1]


def test_the_models_are_written_once_and_whole(tmp_path):
    command = [sys.executable, "benchmarks/models.py", "S", "--models-dir", str(tmp_path)]
    said = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert f"writing {tmp_path / 'S.int8'}" in said[0]
    assert said[1] == ""
    for name in ("S", "S.int8", "S.int4"):
        assert inspect(tmp_path / name).faults == []
