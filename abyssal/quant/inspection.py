"""What a model folder holds, and everything that is wrong with it, without reading its weights.

Headers of shards are read, and the block scales of FP8 weights; all else of the weights is looked
at only to compare hashes, where that is wished for.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from abyssal.checkpoint import files, names, shards, weights
from abyssal.checkpoint.shard_file import DTYPES, Entry
from abyssal.checkpoint.shards import Shards
from abyssal.checkpoint.survey import Survey, survey_shards
from abyssal.config import ModelConfig
from abyssal.errors import AbyssalError
from abyssal.model.transformer import DeepSeekV3
from abyssal.plan.count import count
from abyssal.quant import round_trip
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.template import layout_of

Progress = Callable[[int, int, str], None]  # bytes read, bytes in all, the file

_AGAIN = "copy it again"
_BELONG = "check that config.json and the shards belong together"


def inspect(
    folder: str | Path,
    *,
    verify: bool = True,
    progress: Progress = lambda done, total, name: None,
) -> Survey:
    """Look at a folder; with `verify` every file is hashed, which reads it as a whole."""
    found = Survey(Path(folder))
    config = _config(found)
    opened = survey_shards(found, beside=round_trip.FILE)
    if config:
        _architecture(found, config)
        _fit(found, config, opened)
    _stored(found, opened)
    _scales(found, opened)
    _words(found, config)
    _hashes(found, verify, progress)
    return found


def _config(found: Survey) -> ModelConfig | None:
    try:
        config = ModelConfig.load(found.folder)
    except AbyssalError as problem:
        found.fault(str(problem), "copy or mend config.json")
        return None
    for check in (shards.quantization_of, shards.block_size, shards.group_size):
        try:
            check(found.folder)
        except AbyssalError as problem:
            found.fault(str(problem), "mend quantization_config, or convert the original again")
    return config


# What is in them


def _architecture(found: Survey, config: ModelConfig) -> None:
    counts = count(config)
    found.facts |= {
        "params_total": counts.params_total,
        "params_active": counts.params_active,
        "params_mtp": counts.params_mtp,
        "blocks": config.num_hidden_layers,
        "dense_blocks": config.first_k_dense_replace,
        "mtp_modules": config.num_nextn_predict_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "latent_size": config.latent_size,
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "shared_experts": config.n_shared_experts,
        "vocab_size": config.vocab_size,
        "context_tokens": config.max_position_embeddings,
        "rope_scaling": config.rope_scaling.type if config.rope_scaling else None,
    }


def _fit(found: Survey, config: ModelConfig, opened: Shards) -> None:
    """Every tensor held to what config.json says."""
    if not opened.stored:
        return
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DeepSeekV3(config).state_dict().items()}
    wanted = {name: names.parts(name, shape, config) for name, shape in shapes.items()}
    kinds: dict[str, list[str]] = {}
    for misfit in weights.misfits(opened, wanted, names.copies(config)):
        base = misfit.name.removesuffix(names.SCALE)
        if {misfit.name, base} & found.lost:
            continue  # said with its shard
        if misfit.kind == "missing" and base != misfit.name and base in opened.stored:
            kinds.setdefault("FP8 without scales", []).append(f"{base} has no {misfit.name}")
        elif misfit.kind == "of another shape" and base != misfit.name:
            kinds.setdefault("scales of another shape", []).append(misfit.text)
        else:
            kinds.setdefault(misfit.kind, []).append(misfit.text)
    for kind, texts in kinds.items():
        found.faults_of(kind, texts, _BELONG)


def _stored(found: Survey, opened: Shards) -> None:
    """Bytes by type, and what is quantized."""
    sizes = Counter[str]()
    for name, (_, shape, dtype) in opened.stored.items():
        if dtype in DTYPES:
            sizes[dtype] += Entry(dtype, shape).num_bytes
        else:
            found.fault(f"{name} is of type {dtype}, which is not known", _BELONG)
    precisions = Counter(opened.precision(name) for name in opened.weights())
    coded = {kind: precisions[kind] for kind in ("fp8", "int8", "int4") if precisions[kind]}
    found.facts |= {
        "tensors": len(opened.stored),
        "types": sorted({entry.dtype for entry in opened.stored.values()}),
        "bytes": sum(sizes.values()),
        "bytes_by_type": dict(sizes.most_common()),
        "quantized": coded,
    }
    if "fp8" in coded:
        scales = [n for n in opened.stored if n.endswith(names.SCALE)]
        blocks = sum(math.prod(opened.stored[name].shape) for name in scales)
        found.facts |= {"fp8_block": list(opened.block), "fp8_scales": blocks}
    said = _quantization_config(found.folder)
    if coded and not said:
        found.fault(
            f"{sum(coded.values()):,} weights are quantized, but config.json has no "
            "quantization_config: other programs will not know",
            "copy config.json again, or convert the original again",
        )
    if said:
        found.facts["scale_format"] = said.get("scale_fmt", "float32") if "fp8" in coded else None
    found.facts["fp8_scales_kept"] = (found.folder / round_trip.FILE).is_file()


def _quantization_config(folder: Path) -> Mapping[str, object]:
    try:
        said = files.read_json(folder / "config.json").get("quantization_config")
    except AbyssalError:  # noted with the config
        return {}
    return said if isinstance(said, dict) else {}


def _scales(found: Survey, opened: Shards) -> None:
    """Scales that are no numbers, or no scales."""
    bad = []
    for name, entry in opened.stored.items():
        is_scale = name.endswith(names.SCALE) and entry.dtype in shards.FLOATS
        if is_scale and entry.path not in found.unreadable:
            scale = opened.raw(name).float()
            count = int((~scale.isfinite() | (scale == 0)).sum())
            if count:
                bad.append(f"{name} has {count:,} of {scale.numel():,} NaN, infinite or zero")
            if len(opened.open) > 1:
                opened.close()
    opened.close()
    found.faults_of("scales", bad, "copy the shard again, or convert the original again")


# Words


def _words(found: Survey, config: ModelConfig | None) -> None:
    try:
        tokenizer = Tokenizer.load(found.folder)
    except AbyssalError as problem:
        found.fault(str(problem), "copy tokenizer.json of the model this was made from")
        return
    found.facts |= {
        "tokenizer_tokens": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
    }
    if config and tokenizer.vocab_size > config.vocab_size:
        found.fault(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, config.json says vocab_size="
            f"{config.vocab_size:,}",
            "they belong to different models; copy the right tokenizer.json",
        )
    for name in ("bos_token_id", "eos_token_id") if config else ():
        theirs, ours = getattr(config, name), getattr(tokenizer, name)
        if theirs != ours:
            found.fault(
                f"config.json says {name}={theirs}, the tokenizer {ours}", "mend config.json"
            )
    try:
        found.facts["layout"] = layout_of(found.folder)
    except AbyssalError as problem:
        found.fault(
            str(problem).removesuffix("; give --layout"),
            "copy tokenizer_config.json, or name the layout with --layout",
        )


# Hashes


def _hashes(found: Survey, verify: bool, progress: Progress) -> None:
    """Every file of the manifest held to it; without one, the files as they are."""
    path = found.folder / files.MANIFEST
    said: dict[str, Any] = {}
    if path.is_file():
        try:
            listed: Any = files.read_json(path).get("files")
            said = {name: dict(entry) for name, entry in listed.items()}
        except (AbyssalError, AttributeError, TypeError, ValueError):
            found.fault(f"{files.MANIFEST} cannot be read", "copy it again")
    if not verify:
        found.facts |= {"hashes": "not compared", "sha256": _together(said) if said else None}
        return
    names_ = said or {p.name: {} for p in sorted(found.folder.iterdir()) if p.suffix != ".bin"}
    known = {n: found.folder / n for n in names_ if (found.folder / n).is_file()}
    total, done = sum(p.stat().st_size for p in known.values()), 0
    seen: dict[str, dict[str, int | str]] = {}
    for name, file in known.items():
        progress(done, total, name)
        seen[name] = files.fingerprint(file)
        done += file.stat().st_size
        progress(done, total, name)
    changed = [name for name, entry in said.items() if name in seen and seen[name] != entry]
    gone = [name for name in said if name not in seen]
    found.faults_of("not as it was written", changed, _AGAIN)
    found.faults_of("in the manifest but not here", gone, _AGAIN)
    as_written = "as written" if not changed and not gone else "changed"
    found.facts |= {
        "hashes": as_written if said else "no manifest to compare with",
        "sha256": _together(seen),
    }


def _together(fingerprints: Mapping[str, Mapping[str, object]]) -> str:
    """One hash of all: SHA-256 of `hash  name` lines, as sha256sum prints them."""
    lines: Iterator[str] = (f"{fingerprints[n].get('sha256')}  {n}\n" for n in sorted(fingerprints))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
