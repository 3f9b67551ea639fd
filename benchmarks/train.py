"""Tokens trained a second beside transformers, eager and compiled: BF16 products, AdamW, MFU.

python benchmarks/train.py --model T
python benchmarks/train.py --model S --rows 2 --length 1024 --without "transformers compiled"
"""

from speed import rows
from speed.bench import Bench, options, parsed
from speed.finish import finish


def main() -> None:
    """Measure one model."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=["S", "T", "M"], default="S")
    parser.add_argument("--rows", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    args = parsed(parser)
    with Bench(args) as bench:
        rows.train(bench, args.model, args.rows, args.length, args.steps)
    finish(bench)


if __name__ == "__main__":
    main()
