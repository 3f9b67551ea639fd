"""The verb that plans: what a model weighs, what training or serving it takes on which hardware."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from abyssal.cli import DEMO, Verb, console

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
    from abyssal.cli import plan_tables, planning

    asked = planning.read(model, seq_len, precision, moments, micro_sequences, sequences)
    if hardware is None:
        given = (devices, tokens, search, serve, html, dp, pp > 1, ep > 1, zero)
        planning.check_needs_none(_NEEDS_HARDWARE, given)
        plan_tables.weigh(model, asked, json)
        return
    on = planning.on(hardware, asked, price, intra_node, inter_node, dp or devices or 1)
    if serve:
        served = planning.serving(asked, on, devices, context, users, efficiency, reserve)
        plan_tables.show_serving(model, hardware, served, json)
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
    plan_tables.show_training(model, planned, found, json)
    if html is not None:
        from abyssal.cli.plan_page import page
        from abyssal.report.page import write

        write(html, page(model, asked.config, planned))
        console.note(f"{html}: the plan as a page")


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
