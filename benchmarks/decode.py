"""Output tokens a second beside llama.cpp, transformers and vLLM, in turn, in one run.

python benchmarks/decode.py --model M --batches 1 8 32 --kinds bf16 int8 q8_0
python benchmarks/decode.py --model S --without vLLM transformers
"""

from speed import rows
from speed.bench import Bench, options, parsed
from speed.finish import finish


def main() -> None:
    """Measure one model."""
    parser = options(__doc__)
    parser.add_argument("--model", choices=["S", "M"], default="S")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    args = parsed(parser)
    with Bench(args) as bench:
        for batch in args.batches:
            rows.decode(bench, args.model, batch)
        rows.cache(bench, args.model)
        rows.memory(bench, args.model)
    finish(bench)


if __name__ == "__main__":
    main()
