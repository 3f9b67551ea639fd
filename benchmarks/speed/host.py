"""The answering side of a worker: an engine in a process of its own, under its own interpreter.

    python host.py ENGINE        one JSON object a line in, one a line out

The first line opens the engine: {"folder": ..., "kind": ..., ...}. Each line after it names one of
the engine's methods and its arguments: {"do": "decode", "steps": 16, "least_s": 0.5}. Whatever
libraries print goes to the standard error.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parent.parent)  # benchmarks, whatever the interpreter
sys.path.insert(1, str(Path(__file__).parent.parent.parent))  # the package

ENGINES = {  # module and class; and whether what it needs of torch is loaded before the clock runs
    "calibrator": ("calibration", "Calibrator", True),
    "abyssal": ("abyssal_engine", "Passes", True),
    "abyssal LLM": ("abyssal_engine", "Requests", True),
    "abyssal training": ("trainers", "Abyssal", True),
    "transformers": ("transformers_engine", "Transformers", True),
    "transformers training": ("trainers", "Transformers", True),
    "transformers compiled": ("trainers", "Compiled", True),
    "llama.cpp": ("llama_engine", "LlamaCpp", False),
    "vLLM": ("vllm_engine", "VLLM", True),
}


def main() -> None:
    """Open the engine, then answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name, needs_torch = ENGINES[sys.argv[1]]

    def answer(result: Any) -> None:
        print(json.dumps({"result": result}), file=answers, flush=True)

    options = json.loads(sys.stdin.readline())
    if needs_torch:
        import torch  # noqa: F401
    start = time.perf_counter()
    engine = getattr(importlib.import_module(f"speed.{module}"), name)(**options)
    answer(time.perf_counter() - start)
    for line in sys.stdin:
        arguments = json.loads(line)
        answer(getattr(engine, arguments.pop("do"))(**arguments))


if __name__ == "__main__":
    main()
