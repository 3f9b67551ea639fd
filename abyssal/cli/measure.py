"""The verb that looks: what a folder holds, what this machine can do."""

import os
from pathlib import Path
from typing import Annotated

import typer

from abyssal.cli import DEMO, Verb, console


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
)
