"""The verb that plans: what a model weighs, what training or serving it takes on which hardware."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abyssal.cli import DEMO, Verb, console

if TYPE_CHECKING:
    from abyssal.plan.count import Counts
    from abyssal.plan.search import Found
    from abyssal.plan.serving import Serving
    from abyssal.plan.training import TrainingPlan

_TRAINING, _SERVING, _LAYOUT = "Training", "Serving", "Layout"
_NAMES = {"shared": "shared experts", "routed": "routed experts"}


def _whole(text: str, panel: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(help=text, metavar="N", rich_help_panel=panel)
    return found


def plan(
    model: Annotated[
        str,
        typer.Argument(help="A preset such as deepseek-v3, a model folder, or a recipe."),
    ] = DEMO,
    seq_len: Annotated[int, typer.Option(help="Tokens per training sequence.", metavar="N")] = 4096,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="H800, H100, H200, H20, A100, B200; or this, which is measured.", metavar="NAME"
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="How many; dp x pp if left out.", metavar="N")
    ] = None,
    stage: Annotated[
        Literal["pretrain", "extend", "sft", "rl"],
        typer.Option(help="What is planned.", rich_help_panel=_TRAINING),
    ] = "pretrain",
    tokens: Annotated[
        float | None,
        typer.Option(help="Tokens of the stage, such as 14.8e12.", rich_help_panel=_TRAINING),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Find the cheapest layout that fits.", rich_help_panel=_TRAINING
        ),
    ] = False,
    dp: Annotated[int | None, _whole("Data-parallel ranks.", _LAYOUT)] = None,
    pp: Annotated[int, _whole("Pipeline stages.", _LAYOUT)] = 1,
    ep: Annotated[int, _whole("Ranks that share the routed experts; divides dp.", _LAYOUT)] = 1,
    zero: Annotated[int, _whole("1: masters and moments are spread over ranks.", _LAYOUT)] = 0,
    precision: Annotated[
        Literal["bfloat16", "float32", "fp8"],
        typer.Option(help="Of matrix products.", rich_help_panel=_LAYOUT),
    ] = "bfloat16",
    moments: Annotated[
        Literal["bfloat16", "float32"],
        typer.Option(help="Of AdamW.", rich_help_panel=_LAYOUT),
    ] = "bfloat16",
    recompute: Annotated[
        Literal["none", "norms", "blocks"],
        typer.Option(
            help="norms: RMSNorm and MLA's up-projections, as in the paper.",
            rich_help_panel=_LAYOUT,
        ),
    ] = "none",
    schedule: Annotated[
        Literal["1f1b", "zb1p", "dualpipe", "dualpipev"],
        typer.Option(help="Of the pipeline.", rich_help_panel=_LAYOUT),
    ] = "1f1b",
    sequences: Annotated[
        int | None, _whole("Of one step; enough to fill the layout if left out.", _LAYOUT)
    ] = None,
    micro_sequences: Annotated[int, _whole("Of one pass.", _LAYOUT)] = 1,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Plan serving instead of training.", rich_help_panel=_SERVING),
    ] = False,
    context: Annotated[int, _whole("Tokens cached for each user, on average.", _SERVING)] = 4096,
    users: Annotated[
        int | None, _whole("Of a device at once; as many as fit, 256 at most.", _SERVING)
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Dollars of a device and hour.", metavar="X")
    ] = None,
    efficiency: Annotated[
        float, typer.Option(help="Share of the stated peak that products sustain.", metavar="X")
    ] = 0.7,
    reserve: Annotated[
        float, typer.Option(help="Share of a device's memory left free.", metavar="X")
    ] = 0.1,
    intra_node: Annotated[
        float | None, typer.Option(help="Bytes a second to devices of the node.", metavar="X")
    ] = None,
    inter_node: Annotated[
        float | None, typer.Option(help="Bytes a second to other nodes.", metavar="X")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the plan as one page.", metavar="FILE")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Say what a model weighs, and what it takes to train or serve it, without building it."""
    from abyssal.cli import planning
    from abyssal.errors import ConfigError
    from abyssal.plan.count import count

    asked = planning.read(model, seq_len, precision, moments, micro_sequences, sequences)
    if hardware is None:
        wanted = {"--search": search, "--serve": serve, "--html": html, "--devices": devices,
                  "--tokens": tokens, "--dp": dp}  # fmt: skip
        given = [name for name, value in wanted.items() if value]
        if given:
            raise ConfigError(f"{', '.join(given)} needs hardware; add --hardware H800, say")
        counts = count(asked.config, asked.seq_len)
        if json:
            console.show_json(counts.to_dict())
        else:
            _show_parameters(model, counts)
            _show_costs(counts)
        return
    on = planning.on(hardware, asked, price, intra_node, inter_node, dp or 1)
    if serve:
        served = planning.serving(asked, on, devices, context, users, efficiency, reserve)
        if json:
            console.show_json(served)
        else:
            _show_serving(model, hardware, served)
        return
    found: list[Found] = []
    if search:
        found = planning.search(asked, on, devices, efficiency, reserve)
        layout = found[0].layout
    else:
        layout = planning.layout(asked, devices, dp=dp, pp=pp, ep=ep, zero=zero,
                                 recompute=recompute, schedule=schedule)  # fmt: skip
    planned = planning.training(asked, layout, on, stage, tokens, efficiency, reserve)
    if json:
        others = [{**asdict(one.layout), "device_hours_per_trillion":
                   one.time.device_hours_per_trillion} for one in found[:10]]  # fmt: skip
        console.show_json({**planned.to_dict(), **({"found": others} if search else {})})
    else:
        _show_found(found)
        _show_plan(model, planned)
    if html is not None:
        from abyssal.cli.plan_page import page
        from abyssal.report.page import write

        write(html, page(model, asked.config, planned))
        console.note(f"{html}: the plan as a page")


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
    layout, time, largest = planned.layout, planned.time, planned.largest
    name = planned.hardware.name
    said = f"{model}: {planned.stage} on {layout.devices:,} x {name}"
    keys = ("dp", "pp", "ep", "zero", "schedule", "precision", "recompute", "sequences", "seq_len")
    console.table(said, ("", ""), [(key, str(getattr(layout, key))) for key in keys])
    console.say("")
    rows = [(part, console.quantity(size, "B")) for part, size in largest.to_dict().items() if size]
    usable = console.quantity(planned.usable_bytes, "B")
    remedy = (
        "" if planned.fits else "; try --recompute norms or blocks, --zero 1, a larger pp or ep"
    )
    rows.append(("fits", f"{'yes' if planned.fits else 'NO'}, of {usable}{remedy}"))
    console.table("memory of the fullest device", ("", ""), rows)
    console.say("")
    parts = {part.removesuffix("_s"): value for part, value in asdict(time).items()
             if part.endswith("_s") and value}  # fmt: skip
    rows = [(part, console.duration(value)) for part, value in parts.items()]
    rows.append(("step", console.duration(time.total_s)))
    rows.append(("tokens a second", console.number(round(time.tokens_per_s))))
    rows.append(("MFU", f"{time.mfu:.1%}"))
    if layout.pp > 1:
        rows.append(("pipeline idle", f"{time.bubble:.1%}"))
    hours = console.number(round(time.device_hours_per_trillion))
    rows.append(("device hours per trillion tokens", hours))
    console.table("a step", ("", ""), rows)
    console.say("")
    _show_money(planned)


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


def _show_serving(model: str, hardware: str, served: "Serving") -> None:
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
