"""The verb that says what a model costs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from abyssal.cli import DEMO, Verb, console

if TYPE_CHECKING:
    from abyssal.plan.count import Counts


def plan(
    model: Annotated[
        str, typer.Argument(help="A preset such as deepseek-v3, or a model folder.")
    ] = DEMO,
    seq_len: Annotated[
        int, typer.Option(help="Tokens per training sequence, for the FLOPs.", metavar="N")
    ] = 4096,
    json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Say what a model weighs and what a token costs, without building it."""
    from abyssal import plan as plan_model

    counts = plan_model(model, seq_len)
    if json:
        console.show_json(counts.to_dict())
    else:
        _show_parameters(model, counts)
        _show_costs(counts)


def _show_parameters(model: str, counts: "Counts") -> None:
    total, active, mtp = asdict(counts.total), asdict(counts.active), asdict(counts.mtp)
    rows = [
        (part, *(console.number(column[part]) for column in (total, active, mtp)))
        for part in total
        if total[part] or mtp[part]
    ]
    sums = (counts.params_total, counts.params_active_with_embedding, counts.params_mtp)
    rows.append(("total", *map(console.number, sums)))
    rows.append(("without embedding", "", console.number(counts.params_active), ""))
    console.table(f"{model}: parameters", ("", "all", "active per token", "MTP adds"), rows)


def _show_costs(counts: "Counts") -> None:
    rows = [
        ("weights in BF16", counts.weight_bytes, "B"),
        ("cache per token in BF16", counts.cache_bytes_per_token, "B"),
        ("  if every head kept its own", counts.unfolded_cache_bytes_per_token, "B"),
        (
            f"training per token, at {console.number(counts.seq_len)}",
            counts.flops_per_token_training(),
            "FLOP",
        ),
    ]
    if counts.num_mtp_blocks:
        rows.append(("  with MTP", counts.flops_per_token_training(mtp=True), "FLOP"))
    console.say("")
    console.table(
        "costs", ("", ""), [(name, console.quantity(cost, unit)) for name, cost, unit in rows]
    )


VERBS = (
    Verb(
        plan,
        (
            "abyssal plan deepseek-v3",
            "abyssal plan out/tiny/base --seq-len 512",
            "abyssal plan tiny --json",
        ),
    ),
)
