"""One full-size layer of DeepSeek-V3 in FP8, decoding: share of the memory's speed, peak memory.

python benchmarks/layer.py --batches 1 8         11.5 GB on disk, written on the first call
"""

from speed import rows
from speed.bench import Bench, options, parsed
from speed.finish import finish


def main() -> None:
    """Measure it."""
    parser = options(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    args = parsed(parser)
    with Bench(args) as bench:
        for batch in args.batches:
            rows.layer(bench, batch)
    finish(bench)


if __name__ == "__main__":
    main()
