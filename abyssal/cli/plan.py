"""The verb that plans: what a model weighs, what training or serving it takes on which hardware."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abyssal.cli import DEMO, Verb, console

if TYPE_CHECKING:
    from abyssal.cli.planning import Asked
    from abyssal.plan.count import Counts
    from abyssal.plan.search import Found
    from abyssal.plan.serving import Serving
    from abyssal.plan.training import TrainingPlan

_NEEDS_HARDWARE = ("--devices", "--tokens", "--search", "--serve", "--html", "--dp", "--pp", "--ep",
                   "--zero")  # fmt: skip


def _option(text: str, panel: str = "", metavar: str = "N") -> Any:
    """An option of one of the groups that --help shows."""
    return typer.Option(help=text, metavar=metavar, rich_help_panel=panel or None)


def _choice(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel)


Model = Annotated[
    str, typer.Argument(help="A preset such as deepseek-v3, a model folder, or a recipe.")
]
SeqLen = Annotated[int, _option("Tokens per training sequence.")]
Hardware = Annotated[
    str | None,
    _option("H800, H100, H200, H20, A100, B200; or this, which is measured.", metavar="NAME"),
]
Devices = Annotated[int | None, _option("How many; dp x pp if left out.")]
Price = Annotated[float | None, _option("Dollars of a device and hour.", metavar="X")]
Efficiency = Annotated[
    float, _option("Share of the stated peak that products sustain.", metavar="X")
]
Reserve = Annotated[float, _option("Share of a device's memory left free.", metavar="X")]
IntraNode = Annotated[float | None, _option("Bytes a second to devices of the node.", metavar="X")]
InterNode = Annotated[float | None, _option("Bytes a second to other nodes.", metavar="X")]
Html = Annotated[Path | None, _option("Write the plan as one page.", metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")]

Stage = Annotated[
    Literal["pretrain", "extend", "sft", "rl"], _choice("What is planned.", "Training")
]
Tokens = Annotated[
    float | None,
    _option(
        "Tokens of the stage, such as 14.8e12; for rl those of all answers.",
        "Training",
        metavar="X",
    ),
]
Search = Annotated[
    bool,
    typer.Option(
        "--search", help="Find the cheapest layout that fits.", rich_help_panel="Training"
    ),
]
Dp = Annotated[int | None, _option("Data-parallel ranks.", "Layout")]
Pp = Annotated[int, _option("Pipeline stages.", "Layout")]
Ep = Annotated[int, _option("Ranks that share the routed experts; divides dp.", "Layout")]
Zero = Annotated[int, _option("1: masters and moments are spread over ranks.", "Layout")]
Precision = Annotated[
    Literal["bfloat16", "float32", "fp8"], _choice("Of matrix products.", "Layout")
]
Moments = Annotated[Literal["bfloat16", "float32"], _choice("Of AdamW.", "Layout")]
Recompute = Annotated[
    Literal["none", "norms", "blocks"],
    _choice("norms: RMSNorm and MLA's up-projections, as in the paper.", "Layout"),
]
Schedule = Annotated[
    Literal["1f1b", "zb1p", "dualpipe", "dualpipev"], _choice("Of the pipeline.", "Layout")
]
Sequences = Annotated[
    int | None, _option("Of one step; enough to fill the layout if left out.", "Layout")
]
MicroSequences = Annotated[int, _option("Of one pass.", "Layout")]
Serve = Annotated[
    bool,
    typer.Option("--serve", help="Plan serving instead of training.", rich_help_panel="Serving"),
]
Context = Annotated[int, _option("Tokens cached for each user, on average.", "Serving")]
Users = Annotated[
    int | None, _option("Of a device at once; as many as fit, 256 at most.", "Serving")
]


def plan(
    model: Model = DEMO,
    seq_len: SeqLen = 4096,
    hardware: Hardware = None,
    devices: Devices = None,
    stage: Stage = "pretrain",
    tokens: Tokens = None,
    search: Search = False,
    dp: Dp = None,
    pp: Pp = 1,
    ep: Ep = 1,
    zero: Zero = 0,
    precision: Precision = "bfloat16",
    moments: Moments = "bfloat16",
    recompute: Recompute = "none",
    schedule: Schedule = "1f1b",
    sequences: Sequences = None,
    micro_sequences: MicroSequences = 1,
    serve: Serve = False,
    context: Context = 4096,
    users: Users = None,
    price: Price = None,
    efficiency: Efficiency = 0.7,
    reserve: Reserve = 0.1,
    intra_node: IntraNode = None,
    inter_node: InterNode = None,
    html: Html = None,
    json: Json = False,
) -> None:
    """Say what a model weighs, and what it takes to train or serve it, without building it."""
    from abyssal.cli import planning

    asked = planning.read(model, seq_len, precision, moments, micro_sequences, sequences)
    if hardware is None:
        given = (devices, tokens, search, serve, html, dp, pp > 1, ep > 1, zero)
        planning.check_needs_none(_NEEDS_HARDWARE, given)
        _weigh(model, asked, json)
        return
    on = planning.on(hardware, asked, price, intra_node, inter_node, dp or devices or 1)
    if serve:
        served = planning.serving(asked, on, devices, context, users, efficiency, reserve)
        _show_serving(model, hardware, served, json)
        return
    if search:
        found = planning.search(asked, on, devices, efficiency, reserve)
        layout = found[0].layout
    else:
        found = []
        layout = planning.layout(
            asked, devices, dp=dp, pp=pp, ep=ep, zero=zero, recompute=recompute, schedule=schedule
        )
    planned = planning.training(asked, layout, on, stage, tokens, efficiency, reserve)
    _show_training(model, planned, found, json)
    if html is not None:
        from abyssal.cli.plan_page import page
        from abyssal.report.page import write

        write(html, page(model, asked.config, planned))
        console.note(f"{html}: the plan as a page")


def _weigh(model: str, asked: "Asked", json: bool) -> None:
    from abyssal.plan.count import count

    counts = count(asked.config, asked.seq_len)
    if json:
        console.show_json(counts.to_dict())
        return
    _show_parameters(model, counts)
    _show_costs(counts)


def _show_training(model: str, planned: "TrainingPlan", found: "list[Found]", json: bool) -> None:
    if not json:
        _show_found(found)
        _show_plan(model, planned)
        return
    others = [
        {
            **asdict(one.layout),
            "device_hours_per_trillion": one.time.device_hours_per_trillion,
            "memory_bytes": one.memory.total,
        }
        for one in found[:10]
    ]
    console.show_json({**planned.to_dict(), **({"found": others} if found else {})})


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


def _show_plan(model: str, planned: "TrainingPlan") -> None:
    layout, largest = planned.layout, planned.largest
    said = f"{model}: {planned.stage} on {layout.devices:,} x {planned.hardware.name}"
    keys = ("dp", "pp", "ep", "zero", "schedule", "precision", "recompute", "sequences", "seq_len")
    console.table(said, ("", ""), [(key, str(getattr(layout, key))) for key in keys])
    console.say("")
    rows = [(part, console.quantity(size, "B")) for part, size in largest.to_dict().items() if size]
    usable = console.quantity(planned.usable_bytes, "B")
    rows.append(("fits", f"{'yes' if planned.fits else 'NO'}, of {usable}"))
    console.table("memory of the fullest device", ("", ""), rows)
    if not planned.fits:
        console.note("it may fit with --recompute norms or blocks, --zero 1, a larger pp or ep")
    console.say("")
    _show_step(planned)
    _show_money(planned)


def _show_step(planned: "TrainingPlan") -> None:
    time = planned.time
    rows = [
        (part.removesuffix("_s"), console.duration(value))
        for part, value in asdict(time).items()
        if part.endswith("_s") and value
    ]
    rows.append(("step", console.duration(time.total_s)))
    rows.append(("tokens a second", console.number(round(time.tokens_per_s))))
    rows.append(("MFU", f"{time.mfu:.1%}"))
    if planned.layout.pp > 1:
        rows.append(("pipeline idle", f"{time.bubble:.1%}"))
    hours = console.number(round(time.device_hours_per_trillion))
    rows.append(("device hours per trillion tokens", hours))
    console.table("a step", ("", ""), rows)
    console.say("")


def _show_money(planned: "TrainingPlan") -> None:
    rows = [
        (
            name,
            console.quantity(one.tokens, ""),
            console.number(round(one.device_hours, 1)),
            console.duration(one.days * 86400),
            "-" if one.dollars is None else f"${one.dollars:,.0f}",
        )
        for name, one in planned.costs.items()
    ]
    console.table("cost", ("", "tokens", "device hours", "time", "money"), rows)
    if planned.hardware.dollars_per_hour is None:
        console.note("no price is stated for this hardware; --price DOLLARS adds one")


def _show_found(found: "list[Found]") -> None:
    if not found:
        return
    rows = [
        (
            f"dp {one.layout.dp} pp {one.layout.pp} ep {one.layout.ep}",
            one.layout.schedule,
            one.layout.recompute,
            console.quantity(one.memory.total, "B"),
            console.duration(one.time.total_s),
            console.number(round(one.time.device_hours_per_trillion)),
        )
        for one in found[:5]
    ]
    head = ("layout", "schedule", "recompute", "memory", "step", "device hours per 1T tokens")
    console.table(f"the best of {len(found)} layouts that fit", head, rows)
    console.say("")


def _show_serving(model: str, hardware: str, served: "Serving", json: bool) -> None:
    if json:
        console.show_json(served)
        return
    rows = [(name.replace("_", " "), console.written(name, value))
            for name, value in asdict(served).items()]  # fmt: skip
    rows.insert(-1, ("step s", console.duration(served.step_s)))
    console.table(f"{model}: serving on {served.devices} x {hardware}, a device", ("", ""), rows)


VERBS = (
    Verb(
        plan,
        (
            "abyssal plan deepseek-v3",
            "abyssal plan out/tiny/base --seq-len 512",
            "abyssal plan deepseek-v3 --hardware H800 --devices 2048 --pp 16 --ep 64 --zero 1 "
            "--precision fp8 --schedule dualpipe --recompute norms --sequences 15360",
            "abyssal plan deepseek-v3 --hardware H200 --devices 512 --search --precision fp8",
            "abyssal plan deepseek-v3 --hardware H800 --devices 144 --serve --context 4989",
            "abyssal plan small --hardware this --tokens 1e9 --seq-len 512 --html plan.html",
        ),
    ),
)
