"""Plans as tables for people, or as one object for machines."""

from dataclasses import asdict

from abyssal.cli import console
from abyssal.cli.planning import Asked
from abyssal.plan.count import Counts, count
from abyssal.plan.search import Found
from abyssal.plan.serving import Serving
from abyssal.plan.training import TrainingPlan


def weigh(model: str, asked: Asked, json: bool) -> None:
    """What a model weighs and costs, on no hardware in particular."""
    counts = count(asked.config, asked.seq_len)
    if json:
        console.show_json(counts.to_dict())
        return
    _show_parameters(model, counts)
    _show_costs(counts)


def show_training(model: str, planned: TrainingPlan, found: list[Found], json: bool) -> None:
    """A plan of training, below the layouts that were found, if any."""
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


def _show_parameters(model: str, counts: Counts) -> None:
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


def _show_costs(counts: Counts) -> None:
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


def _show_plan(model: str, planned: TrainingPlan) -> None:
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


def _show_step(planned: TrainingPlan) -> None:
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


def _show_money(planned: TrainingPlan) -> None:
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


def _show_found(found: list[Found]) -> None:
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


def show_serving(model: str, hardware: str, served: Serving, json: bool) -> None:
    """A plan of serving."""
    if json:
        console.show_json(served)
        return
    rows = [(name.replace("_", " "), console.written(name, value))
            for name, value in asdict(served).items()]  # fmt: skip
    rows.insert(-1, ("step s", console.duration(served.step_s)))
    console.table(f"{model}: serving on {served.devices} x {hardware}, a device", ("", ""), rows)
