"""Verbs that measure: what a model costs, what a folder holds, what this machine can do."""

import os
from dataclasses import asdict
from pathlib import Path
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


def info(
    folder: Annotated[Path, typer.Argument(help="A model folder.")] = Path(DEMO),
    machine: Annotated[
        bool, typer.Option("--machine", help="This machine instead of a folder.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object and nothing else.")] = False,
) -> None:
    """Say what a model folder holds and whether it is whole, or what this machine can do."""
    console.show(_machine() if machine else _contents(folder), as_json=json)


def _machine() -> dict[str, object]:
    import torch

    from abyssal.kernels import registry
    from abyssal.train.machine import measure

    found = measure()
    return {
        "torch": torch.__version__,
        "device": str(found.device),
        "threads": found.threads,
        "cores": os.cpu_count(),
        "precision": str(found.dtype).removeprefix("torch."),
        "peak_flops": found.peak_flops,
        "kernels": registry.status()._asdict(),
    }


def _contents(folder: Path) -> dict[str, object]:
    from abyssal.checkpoint import files, shards
    from abyssal.config import ModelConfig
    from abyssal.errors import CheckpointError
    from abyssal.model.transformer import DeepSeekV3
    from abyssal.plan.count import count
    from abyssal.tokenizer.bpe import Tokenizer

    config = ModelConfig.load(folder)
    counts = count(config)
    DeepSeekV3.load(folder)  # refuses missing, surplus and misshapen tensors by name
    stored = shards.headers(folder)
    tokenizer = Tokenizer.load(folder)
    has_manifest = (folder / files.MANIFEST).is_file()
    changed = files.verify(folder) if has_manifest else []
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} not as written; copy the folder again"
        )
    return {
        "folder": folder,
        "params_total": counts.params_total,
        "params_active": counts.params_active,
        "blocks": config.num_hidden_layers,
        "mtp_modules": config.num_nextn_predict_layers,
        "context_tokens": config.max_position_embeddings,
        "tensors": len(stored),
        "types": sorted({entry.dtype for entry in stored.values()}),
        "tokenizer_tokens": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "hashes": "as written" if has_manifest else "no manifest to compare with",
    }


VERBS = (
    Verb(
        info,
        (
            "abyssal info out/demo/model",
            "abyssal info out/demo/model --json",
            "abyssal info --machine",
        ),
    ),
    Verb(
        plan,
        (
            "abyssal plan deepseek-v3",
            "abyssal plan out/tiny/base --seq-len 512",
            "abyssal plan tiny --json",
        ),
    ),
)
