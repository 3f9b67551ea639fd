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
from abyssal.train.history import Metrics

STAGES = {"pretrain": "Pre-training", "sft": "Supervised fine-tuning",
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
        remark = (
            f"nats per token, mean of the last {count} steps" if count > 1 else "nats per token"
        )
        found.append(("Final loss", two_decimals(loss), remark))
    for name, bits in final_bits(metrics).items():
        first = next(row.bits_per_byte for row in metrics.evaluations if row.name == name)
        found.append((f"Held-out {name}", f"{bits:.3f}", f"bits per byte; {first:.3f} at first"))
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
    return (
        f"{chart}<p>Over the last tenth of recorded steps, {dead:,} of {total:,} routed experts "
        f"are dead (less than {percent(DEAD)} of an even share); the least used one gets "
        f'{plain(least)} even shares.</p>{legend()}<p class="note">Load of each expert in even '
        f"shares: 1 is balanced, blue is idle, orange is overworked. Columns are recorded steps in "
        f"order.</p>"
        f'<div class="grid maps">'
        f"{''.join(heat_maps(metrics.loads, _layer_names(metrics)))}</div>"
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


def _layer_names(metrics: Metrics) -> list[str]:
    """The layers of a load row: MoE blocks in order, then the MTP modules if they are recorded."""
    count = len(metrics.loads[0].load)
    if metrics.config is None:
        return [f"MoE layer {i}" for i in range(count)]
    first, blocks = metrics.config.first_k_dense_replace, metrics.config.num_hidden_layers
    return [
        f"Block {layer}" if layer < blocks else f"MTP module {layer - blocks + 1}"
        for layer in range(first, first + count)
    ]
