"""From a model folder to a first token in a fresh process, beside the peers; `import torch` aside.

python benchmarks/load.py --model M
"""

from speed import rows
from speed.bench import Bench, options, parsed
from speed.finish import finish


def main() -> None:
    """Measure one model."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=["S", "M"], default="S")
    args = parsed(parser)
    with Bench(args) as bench:
        rows.load(bench, args.model)
    finish(bench)


if __name__ == "__main__":
    main()
