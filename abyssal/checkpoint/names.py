"""Which published tensors one of ours is made of: the single place where names differ.

The released checkpoint keeps every matrix apart; we hold the gate and up halves of a SwiGLU as one
matrix, the experts of a block stacked, and MTP modules in a list of their own. README_WEIGHTS of
the release: names under ``model.layers.61`` are those of its MTP module. No torch here.

    D hidden_size    F intermediate size    E n_routed_experts    L num_hidden_layers
"""

from collections.abc import Sequence
from typing import NamedTuple

from abyssal.config import ModelConfig

SCALE = "_scale_inv"  # ends the name of an FP8 weight's block scales


class Part(NamedTuple):
    """One published tensor and where it lies in ours: ``ours[place]`` has this shape."""

    published: str
    place: tuple[int | slice, ...]
    shape: tuple[int, ...]


def parts(name: str, shape: Sequence[int], config: ModelConfig) -> list[Part]:
    """The published tensors that our tensor `name` of `shape` is made of, in their order."""
    published = _published(name, config.num_hidden_layers)
    stem, _, last = published.rpartition(".")
    if stem.endswith(".experts"):
        return [part for e in range(shape[0]) for part in _of_expert(stem, last, e, shape[1:])]
    if published.endswith(".gate_up_proj.weight"):
        return _halves(published.removesuffix("gate_up_proj.weight"), (), shape)
    return [Part(published, (), tuple(shape))]


def copies(config: ModelConfig) -> dict[str, str]:
    """Published tensors that repeat another: each MTP module brings the embedding and the head."""
    originals: dict[str, str] = {}
    first = config.num_hidden_layers
    for layer in range(first, first + config.num_nextn_predict_layers):
        originals[f"model.layers.{layer}.embed_tokens.weight"] = "model.embed_tokens.weight"
        originals[f"model.layers.{layer}.shared_head.head.weight"] = "lm_head.weight"
    return originals


def _published(name: str, num_hidden_layers: int) -> str:
    if name.startswith("lm_head."):
        return name
    if not name.startswith("mtp."):
        return f"model.{name}"
    _, module, inner = name.split(".", 2)
    if inner == "norm.weight":
        inner = "shared_head.norm.weight"
    return f"model.layers.{num_hidden_layers + int(module)}.{inner.removeprefix('block.')}"


def _of_expert(stem: str, last: str, expert: int, shape: Sequence[int]) -> list[Part]:
    if last == "gate_up_proj":
        return _halves(f"{stem}.{expert}.", (expert,), shape)
    return [Part(f"{stem}.{expert}.{last}.weight", (expert,), tuple(shape))]


def _halves(stem: str, before: tuple[int, ...], shape: Sequence[int]) -> list[Part]:
    """Gate rows and up rows of a matrix (2F, D)."""
    rows, columns = shape
    half = rows // 2
    return [
        Part(f"{stem}gate_proj.weight", (*before, slice(0, half)), (half, columns)),
        Part(f"{stem}up_proj.weight", (*before, slice(half, rows)), (half, columns)),
    ]
