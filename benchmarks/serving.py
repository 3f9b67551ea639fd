"""Many requests at once through LLM.generate, ours and vLLM's: output tokens a second.

python benchmarks/serving.py --model M --requests 96 --new 64
"""

from speed import rows
from speed.bench import Bench, options, parsed
from speed.finish import finish


def main() -> None:
    """Measure one model."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=["S", "M"], default="S")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    args = parsed(parser)
    with Bench(args) as bench:
        rows.serving(bench, args.model, args.requests, args.new)
    finish(bench)


if __name__ == "__main__":
    main()
