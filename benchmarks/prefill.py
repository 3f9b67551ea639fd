"""Prompt tokens a second, and the time to a first token, beside the peers in one run.

python benchmarks/prefill.py --model M --tokens 512 2048
python benchmarks/prefill.py --model S --kinds bf16 --without transformers
"""

from speed import rows
from speed.bench import Bench, options, parsed
from speed.finish import finish


def main() -> None:
    """Measure one model."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=["S", "M"], default="S")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    args = parsed(parser)
    with Bench(args) as bench:
        for tokens in args.tokens:
            rows.prefill(bench, args.model, tokens)
        rows.first_token(bench, args.model, args.tokens[0])
    finish(bench)


if __name__ == "__main__":
    main()
