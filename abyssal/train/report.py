"""The story of a model as one HTML file: what was trained, how it went, what it writes, the recipe.

The file needs nothing but itself (report/page.py). It is a function of the run folders alone: the
same runs give the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from abyssal.config import ModelConfig
from abyssal.errors import DataError
from abyssal.plan.count import Counts, Parts, count
from abyssal.report import page
from abyssal.report.notation import duration, escape, number
from abyssal.report.page import Section, figures
from abyssal.train import curves, panels, reinforce_panel
from abyssal.train.metrics import Metrics
from abyssal.train.metrics import read_metrics as read_metrics
from abyssal.train.reproduction import recipe_table, reproduce
from abyssal.train.samples import samples

PARTS = {
    "routed": "Routed experts", "shared": "Shared experts", "dense": "Dense FFNs",
    "attention": "Attention (MLA)", "embedding": "Embedding", "head": "Output head",
    "router": "Router", "norms": "Norms", "projection": "MTP projection",
}  # fmt: skip


def write_report(path: str | Path, runs: Sequence[str | Path], title: str) -> None:
    """Write the report of some runs, in the order they were trained, as one file; all or nothing.

    Raises:
        DataError: no run is given, a folder has no readable metrics.jsonl, or the file cannot be
            written.
        ConfigError, CheckpointError: a run's config.json is not that of a model.
    """
    if not runs:
        raise DataError("a report of no runs; give at least one run folder")
    read = [read_metrics(run) for run in runs]
    page.write(path, page.document(title, _lede(read), _sections(read)))


def _sections(runs: list[Metrics]) -> list[Section]:
    """Every section; its content may be empty."""
    found = [Section("model", "The model", _models(runs))]
    for position, metrics in enumerate(runs, start=1):
        anchor = f"run{position}"
        found.append(Section(anchor, panels.stage_name(metrics), _run(metrics, anchor)))
    found.append(Section("again", "Train it again", reproduce(runs)))
    return found


def _run(metrics: Metrics, anchor: str) -> str:
    """One run, from what one wants to know first to what one looks up."""
    parts: list[tuple[str, Callable[[], str]]] = [
        ("", lambda: _learned(metrics, anchor)),
        ("What it writes", lambda: samples(metrics)),
        ("Experts", lambda: panels.experts(metrics)),
        ("Drift of the routing", lambda: panels.drift(metrics)),
        ("Optimization", lambda: curves.optimization(metrics)),
        ("Speed", lambda: curves.speed(metrics)),
        ("Events", lambda: panels.events(metrics)),
        ("Recipe", lambda: recipe_table(metrics)),
    ]
    body = figures(panels.key_figures(metrics))
    for heading, content in parts:
        if inside := content():
            body += (f"<h3>{heading}</h3>" if heading else "") + inside
    return _when(metrics) + body


def _learned(metrics: Metrics, anchor: str) -> str:
    if metrics.reinforcements:
        return reinforce_panel.reinforcement(metrics)
    return curves.learning(metrics, anchor)


def _when(metrics: Metrics) -> str:
    if metrics.start is None:
        return ""
    said = [f"Folder {metrics.name}"]
    if metrics.start.time:
        said.append(f"last started {metrics.start.time}")
    if metrics.start.machine:
        said.append(metrics.start.machine)
    if metrics.end is None:
        said.append("not finished")
    return f'<p class="when-run">{escape(" · ".join(said))}</p>'


def _lede(runs: list[Metrics]) -> str:
    """The whole report in two sentences."""
    sentence = "A DeepSeek-V3 style mixture of experts"
    if sizes := _sizes(runs[0]):
        total, active = sizes
        sentence += f" with {number(total)} parameters, of which a token meets {number(active)}"
    trained = [
        f"{panels.stage_name(run).lower()} on {number(run.steps[-1].tokens)} tokens "
        f"in {duration(panels.elapsed_s(run))}"
        for run in runs
        if run.steps
    ]
    story = "; then ".join(trained)
    return f"{sentence}. {story[:1].upper()}{story[1:]}." if story else f"{sentence}."


def _sizes(metrics: Metrics) -> tuple[int, int] | None:
    """Total and activated parameters, counted if the configuration is known."""
    if metrics.config:
        counts = count(metrics.config)
        return counts.params_total, counts.params_active_with_embedding
    start = metrics.start
    if start and start.params_total is not None and start.params_active is not None:
        return start.params_total, start.params_active
    return None


# The model


def _models(runs: list[Metrics]) -> str:
    """The parameters of every different configuration among the runs."""
    body = ""
    seen: list[ModelConfig] = []
    for metrics in runs:
        if metrics.config is None or metrics.config in seen:
            continue
        if seen:
            body += f"<h3>{escape(panels.stage_name(metrics))}</h3>"
        seen.append(metrics.config)
        body += _model(metrics.config)
    return body


def _model(config: ModelConfig) -> str:
    counts = count(config)
    sizes = [
        ("Parameters", number(counts.params_total), f"{counts.params_total:,}"),
        ("Activated", number(counts.params_active_with_embedding), "met by one token"),
        ("Blocks", str(config.num_hidden_layers), _blocks(config)),
        ("Experts", f"{config.num_experts_per_tok} of {config.n_routed_experts}",
         f"routed, and {config.n_shared_experts} shared, per MoE layer"),
        ("Hidden size", f"{config.hidden_size:,}", f"{config.num_attention_heads} heads, latent "
         f"{config.kv_lora_rank} + {config.qk_rope_head_dim}"),
        ("Vocabulary", f"{config.vocab_size:,}",
         f"context {config.max_position_embeddings:,} tokens"),
    ]  # fmt: skip
    return (
        figures(sizes)
        + f'<div class="card"><p class="bar-name">All parameters</p>{_bar(counts.total, counts)}'
        + f'<p class="bar-name">Met by one token</p>{_bar(counts.active, counts)}</div>'
        + _table(counts)
    )


def _blocks(config: ModelConfig) -> str:
    dense = config.first_k_dense_replace
    said = f"{dense} dense, then {config.num_hidden_layers - dense} MoE"
    modules = config.num_nextn_predict_layers
    return f"{said}, then {modules} for MTP" if modules else said


def _bar(parts: Parts, counts: Counts) -> str:
    """The parts as one bar, as long as their share of all parameters."""
    pieces = (
        f'<i class="s{color}" style="width:{100 * size / counts.params_total:.2f}%" '
        f'title="{name}: {number(size)}"></i>'
        for part, name, color in _colored()
        if (size := getattr(parts, part))
    )
    return f'<div class="bar">{"".join(pieces)}</div>'


def _table(counts: Counts) -> str:
    rows = ""
    for part, name, color in _colored():
        total, active = getattr(counts.total, part), getattr(counts.active, part)
        if total:
            rows += (
                f'<tr><td><s class="s{color}"></s>{name}</td><td class=num>{total:,}</td>'
                f"<td class=num>{100 * total / counts.params_total:.2f}%</td>"
                f"<td class=num>{active:,}</td></tr>"
            )
    foot = (
        f"<tr><td>Together</td><td class=num>{counts.params_total:,}</td><td class=num>100%</td>"
        f"<td class=num>{counts.params_active_with_embedding:,}</td></tr>"
    )
    if counts.params_mtp:
        foot += (
            f"<tr><td>MTP modules, beside the model</td><td class=num>{counts.params_mtp:,}</td>"
            f"<td></td><td class=num>{counts.mtp_active.total:,}</td></tr>"
        )
    head = ("Part", "Parameters", "Share", "Met by one token")
    cells = "".join(f"<th{' class=num' if i else ''}>{name}</th>" for i, name in enumerate(head))
    return (
        f'<div class="scroll parts"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
    )


def _colored() -> list[tuple[str, str, int]]:
    """(part, name, color); the small last parts share one."""
    return [(part, name, min(i, 7)) for i, (part, name) in enumerate(PARTS.items(), start=1)]
