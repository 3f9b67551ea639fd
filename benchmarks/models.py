"""Write the models that the benchmarks run, and llama.cpp's files of them, before measuring.

    python benchmarks/models.py                S, S64, T and M: a minute, 3 GB
    python benchmarks/models.py L              one full-size layer in FP8: 11.5 GB

The benchmarks write what they miss by themselves; this is for doing it while nobody measures.
"""

import argparse
import importlib.util
from pathlib import Path

from speed.bench import LLAMA_KINDS
from speed.models import MODELS, folder_of

SHARED = ("S", "M")  # models that llama.cpp runs too
CONVERTED = ("S", "S64", "M")


def main() -> None:
    """Write the models named."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("models", nargs="*", metavar="MODEL", help=" ".join(MODELS))
    options.add_argument("--models-dir", type=Path, default=Path("out/bench/models"))
    args = options.parse_args()
    for name in args.models or ["S", "S64", "T", "M"]:
        if name not in MODELS:
            options.error(f"{name!r} is not one of {', '.join(MODELS)}")
        folder = folder_of(name, args.models_dir)
        for kind in ("int8", "int4") if name in CONVERTED else ():
            folder_of(name, args.models_dir, kind)
        if name in SHARED and importlib.util.find_spec("gguf"):
            from speed.llama_file import file_of

            for kind in LLAMA_KINDS:
                file_of(folder, kind)


if __name__ == "__main__":
    main()
