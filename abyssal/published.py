"""The published ``config.json``, in both spellings of the rotary keys.

``rope_theta`` + ``rope_scaling`` (as released) and ``rope_parameters`` (newer transformers). What
the architecture fixes is written to every file, and refused where a file says otherwise.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from abyssal.errors import CheckpointError, ConfigError

_YARN_ONLY = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")

_FIXED: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "ep_size": 1,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "use_cache": True,
}
_CHANGES_NUMBERS = (
    "model_type",
    "attention_bias",
    "hidden_act",
    "moe_layer_freq",
    "rope_interleave",
    "scoring_func",
    "tie_word_embeddings",
    "topk_method",
)


def refuse_other_architectures(published: Mapping[str, Any]) -> None:
    """Raises ConfigError where the file is not of a DeepSeek-V3."""
    for key in _CHANGES_NUMBERS:
        if key in published and published[key] != _FIXED[key]:
            raise ConfigError(
                f"{key}={published[key]!r}, but Abyssal computes DeepSeek-V3 only, which has "
                f"{key}={_FIXED[key]!r}"
            )


def rope_of(published: Mapping[str, Any]) -> dict[str, Any]:
    """All that is said of rotary positions, in whichever spelling."""
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        said = published.get(key) or {}
        if not isinstance(said, Mapping):
            raise ConfigError(f"{key}={said!r}, expected an object or null")
        found.update(said)
    return found


def scaling_of(
    rope: Mapping[str, Any], kinds: Collection[str], names: Collection[str]
) -> dict[str, Any] | None:
    """The fields of a RopeScaling, one of `kinds`, in what `rope_of` found; None: there is none."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in kinds:
        raise ConfigError(f"rope type {kind!r}, expected 'yarn', 'linear' or none")
    known = {name: rope[name] for name in names if rope.get(name) is not None} | {"type": kind}
    for name in _YARN_ONLY if kind == "linear" else ():
        if name in known:
            raise ConfigError(
                f"rope_scaling has {name}={known[name]!r}, which type 'linear' does not use; "
                "remove it, or say type 'yarn'"
            )
    required = ("factor", "original_max_position_embeddings", "mscale", "mscale_all_dim")
    for name in required if kind == "yarn" else required[:2]:
        if name not in known:
            raise ConfigError(
                f"rope_scaling lacks {name!r}; expected it beside type {kind!r} in config.json"
            )
    return known


def written(own: dict[str, Any], **derived: int) -> dict[str, Any]:
    """The file of a configuration's own fields."""
    scaling = own.pop("rope_scaling")
    rope = {"rope_type": "default", "type": "default", "rope_theta": own["rope_theta"]}
    if scaling:
        for name in () if scaling["type"] == "yarn" else _YARN_ONLY:
            del scaling[name]  # transformers would apply a temperature it finds
        rope |= {"rope_type": scaling["type"], **scaling}
    return {**_FIXED, **own, "rope_scaling": scaling, "rope_parameters": rope, **derived}


def read(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """A model folder's ``config.json``: where it is, and what it says.

    Raises:
        CheckpointError: it is not there, or not readable.
    """
    path = Path(folder) / "config.json"
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; expected a model folder with config.json"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise CheckpointError(f"{path}: not valid JSON ({problem}); copy the file again") from None
    if not isinstance(published, dict):
        raise CheckpointError(f"{path}: expected one JSON object, found {type(published).__name__}")
    return path, published
