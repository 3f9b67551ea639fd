"""One training run on the page: its figures, experts and events; its curves are curves.py's."""

from statistics import fmean, median

from abyssal.report.notation import (
    duration,
    escape,
    gigabytes,
    number,
    percent,
    plain,
    two_decimals,
)
from abyssal.train import curves, reinforce_panel
from abyssal.train.heatmap import heat_maps, legend
from abyssal.train.metrics import Metrics

STAGES = {"pretrain": "Pre-training", "sft": "Supervised fine-tuning",
          "dpo": "Preference tuning", "reward": "Reward model",
          "grpo": "Reinforcement learning", "distill": "Distillation"}  # fmt: skip
DEAD = 0.01  # of an even share: less, and an expert counts as dead


def stage_name(metrics: Metrics) -> str:
    """What to call the run."""
    stage = metrics.start.stage if metrics.start else metrics.name
    return STAGES.get(stage, stage)


def final_loss(metrics: Metrics) -> tuple[float, int]:
    """The mean loss of the last steps in nats per token, and how many they are."""
    count = max(1, min(50, len(metrics.steps) // 20))
    return fmean(row.loss for row in metrics.steps[-count:]), count


def final_bits(metrics: Metrics) -> dict[str, float]:
    """The last held-out bits per byte of every evaluation."""
    return {row.name: row.bits_per_byte for row in metrics.evaluations}


def final_measures(metrics: Metrics) -> dict[str, tuple[float, float]]:
    """The first and the last held-out accuracy of every source."""
    found: dict[str, tuple[float, float]] = {}
    for row in metrics.measures:
        if row.name.endswith("/accuracy"):
            name = f"accuracy on {row.name.removesuffix('/accuracy')}"
            found[name] = (found[name][0] if name in found else row.value, row.value)
    return found


def elapsed_s(metrics: Metrics) -> float:
    """Seconds of training, as the run last recorded them."""
    if metrics.end:
        return metrics.end.elapsed_s
    return metrics.steps[-1].elapsed_s if metrics.steps else 0.0


def key_figures(metrics: Metrics) -> list[tuple[str, str, str]]:
    """(name, value, remark) of what one wants to know first."""
    steps, found = metrics.steps, reinforce_panel.key_figures(metrics)
    if steps and not metrics.reinforcements:
        loss, count = final_loss(metrics)
        unit = curves.loss_unit(metrics)
        remark = f"{unit}, mean of the last {count} steps" if count > 1 else unit
        found.append(("Final loss", two_decimals(loss), remark))
    for name, bits in final_bits(metrics).items():
        first = next(row.bits_per_byte for row in metrics.evaluations if row.name == name)
        found.append((f"Held-out {name}", f"{bits:.3f}", f"bits per byte; {first:.3f} at first"))
    for name, (first, last) in final_measures(metrics).items():
        found.append((name.capitalize(), plain(last), f"held out; {plain(first)} at first"))
    if steps:
        found.append(("Tokens", number(steps[-1].tokens), f"in {steps[-1].step:,} steps"))
        speed = median(row.tokens_per_s for row in steps)
        found.append(("Time", duration(elapsed_s(metrics)), f"{number(speed)} tokens/s (median)"))
    if metrics.loads:
        dead, total, least = idle_experts(metrics)
        found.append(
            ("Dead experts", f"{dead:,} of {total:,}", f"least used: {plain(least)} even shares")
        )
    if metrics.end and metrics.end.peak_rss_bytes is not None:
        found.append(("Peak memory", gigabytes(metrics.end.peak_rss_bytes), "resident"))
    return found


def idle_experts(metrics: Metrics) -> tuple[int, int, float]:
    """Dead experts, all experts, and the load of the least used in even shares.

    Averaged over the last tenth of the recorded loads; dead is less than DEAD even shares.
    """
    last = metrics.loads[-max(1, len(metrics.loads) // 10) :]
    shares = [
        fmean(row.load[layer][expert] for row in last) * len(layer_load)
        for layer, layer_load in enumerate(last[0].load)
        for expert in range(len(layer_load))
    ]
    return sum(share < DEAD for share in shares), len(shares), min(shares)


def experts(metrics: Metrics) -> str:
    """The violation curve and the load of every expert over time."""
    chart = curves.violation(metrics)
    if not metrics.loads:
        return chart
    dead, total, least = idle_experts(metrics)
    maps = heat_maps(metrics.loads, layer_names(metrics, len(metrics.loads[0].load)))
    return (
        f"{chart}<p>Over the last tenth of recorded steps, {dead:,} of {total:,} routed experts "
        f"are dead (less than {percent(DEAD)} of an even share); the least used one gets "
        f'{plain(least)} even shares.</p>{legend()}<p class="note">Load of each expert in even '
        f"shares: 1 is balanced, blue is idle, orange is overworked. Columns are recorded steps in "
        f"order.</p>"
        f'<div class="grid maps">{"".join(maps)}</div>'
    )


def drift(metrics: Metrics) -> str:
    """Each MoE layer's routing before and after tuning, on the same text; of the last look."""
    if not metrics.drifts:
        return ""
    last = metrics.drifts[-1]
    names = layer_names(metrics, len(last.load))
    head = ("Layer", "MaxVio before", "MaxVio after", "Total variation", "Top expert changed")
    cells = "".join(f"<th{' class=num' if i else ''}>{name}</th>" for i, name in enumerate(head))
    columns = zip(
        names, last.max_violation_before, last.max_violation, last.total_variation,
        last.top_changed, strict=True,
    )  # fmt: skip
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=num>{two_decimals(before)}</td>"
        f"<td class=num>{two_decimals(after)}</td><td class=num>{percent(variation)}</td>"
        f"<td class=num>{percent(changed)}</td></tr>"
        for name, before, after, variation, changed in columns
    )
    return (
        f'<p class="note">{number(last.tokens)} tokens of {escape(last.name)} through the model '
        f"this run started from and the one it made. Total variation: the share of choices that "
        f"went to other experts; top expert: a token's heaviest.</p>"
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>'
        f'</div><div class="grid">{"".join(curves.drifted(last, names))}</div>'
    )


def events(metrics: Metrics) -> str:
    """What went out of the ordinary, as a table."""
    rows = [
        f"<tr><td class=num>{row.step:,}</td><td>{escape(row.what)}</td>"
        f"<td>{escape(row.detail)}</td></tr>"
        for row in metrics.events
    ]
    if metrics.unreadable:
        remark = f"lines of the metrics file that are broken and left out: {metrics.unreadable}"
        rows.append(f"<tr><td></td><td>unreadable</td><td>{remark}</td></tr>")
    if not rows:
        return ""
    head = "<thead><tr><th class=num>Step</th><th>What</th><th>Detail</th></tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def layer_names(metrics: Metrics, count: int) -> list[str]:
    """The `count` layers of a load: MoE blocks in order, then the MTP modules if they are there."""
    if metrics.config is None:
        return [f"MoE layer {i}" for i in range(count)]
    first, blocks = metrics.config.first_k_dense_replace, metrics.config.num_hidden_layers
    return [
        f"Block {layer}" if layer < blocks else f"MTP module {layer - blocks + 1}"
        for layer in range(first, first + count)
    ]
