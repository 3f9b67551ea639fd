"""Tokens trained a second beside transformers, eager and compiled: BF16 products, AdamW, MFU.

python benchmarks/train.py --model T
python benchmarks/train.py --model S --rows 2 --length 1024 --without "transformers compiled"
python benchmarks/train.py --model S --parts
"""

from speed import parts, rows
from speed.bench import Bench, options, parsed
from speed.finish import finish


def main() -> None:
    """Measure one model."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=["S", "T", "M"], default="S")
    parser.add_argument("--rows", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--parts", action="store_true", help="where our step goes, no peers")
    args = parsed(parser)
    if args.parts:
        parts.show(parts.parts(args.model, args.threads, args.rows, args.length))
        return
    with Bench(args) as bench:
        rows.train(bench, args.model, args.rows, args.length, args.steps)
    finish(bench)


if __name__ == "__main__":
    main()
