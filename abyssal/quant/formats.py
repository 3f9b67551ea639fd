"""What a folder stores in each format: which tensors, in how many bits, and what config.json says.

    bf16   as released, multiplied out: all but the gate biases, which the release has in float32
    fp32   everything
    fp8    the released format: all projections of blocks in blocks of 128 by 128
    int8   compressed-tensors, W8A8: the same but kv_b_proj, and the head
    int4   compressed-tensors: the same in 4 bits in groups of 64, the head in 8

kv_b_proj stays as it is in int8 and int4: attention over a cache of latents reads it as two stacks
of small matrices. Embedding, norms, gates and eh_proj of MTP modules stay in these three.
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from abyssal.checkpoint import fp8, integers, names
from abyssal.checkpoint.shard_file import NAMES, Entry
from abyssal.quant import weight_only

Format = Literal["bf16", "fp32", "fp8", "int8", "int4"]

PLAIN = {"bf16": torch.bfloat16, "fp32": torch.float32}

_PROJECTION = re.compile(
    r"\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|gate_proj|up_proj|down_proj)"
    r"\.weight$"
)
_HEAD = re.compile(r"(^lm_head|\.shared_head\.head)\.weight$")
# Modules as compressed-tensors names them: a class, or an expression.
_HEADS = [r"re:.*lm_head$", r"re:.*shared_head\.head$"]
_KEPT = [r"re:.*kv_b_proj$", r"re:.*mlp\.gate$", r"re:.*eh_proj$"]


def kind_of(published: str, to: Format) -> Format | None:
    """What a published tensor becomes in a folder of that format; None if it stays as it is."""
    if to in PLAIN:
        return None if to == "bf16" and published.endswith("_bias") else to
    if _HEAD.search(published):
        return None if to == "fp8" else "int8"
    if not _PROJECTION.search(published) or (to != "fp8" and "kv_b_proj" in published):
        return None
    return to


def encode(published: str, weight: Tensor, kind: Format) -> dict[str, Tensor]:
    """The tensors that stand for a weight, a matrix (O, I) where it is quantized, by name."""
    match kind:
        case "bf16" | "fp32":
            return {published: weight.to(PLAIN[kind])}
        case "fp8":
            numbers, scale = weight_only.quantize_fp8(weight)
            return {published: numbers, published + names.SCALE: scale}
        case "int8":
            numbers, scale = weight_only.quantize_int8(weight)
            return {published: numbers, published + integers.SCALE: scale}
        case "int4":
            numbers, scale = weight_only.quantize_int4(weight)
            return {
                published + integers.PACKED: integers.pack(numbers),
                published + integers.SCALE: scale,
                published + integers.SHAPE: torch.tensor(weight.shape),
            }


def stored_as(published: str, shape: Sequence[int], kind: Format) -> dict[str, Entry]:
    """What `encode` makes of a weight of that shape, before it is made."""
    whole = tuple(shape)
    match kind:
        case "bf16" | "fp32":
            return {published: Entry(NAMES[PLAIN[kind]], whole)}
        case "fp8":
            scale = Entry("F32", fp8.scale_shape(shape))
            return {published: Entry("F8_E4M3", whole), published + names.SCALE: scale}
        case "int8":
            scale = Entry("F32", (shape[0], 1))
            return {published: Entry("I8", whole), published + integers.SCALE: scale}
        case "int4":
            return {
                published + integers.PACKED: Entry("I32", integers.packed_shape(shape)),
                published + integers.SCALE: Entry("BF16", integers.group_shape(shape)),
                published + integers.SHAPE: Entry("I64", (2,)),
            }


def quantization_config(to: Format) -> dict[str, object] | None:
    """The block of that name in config.json; None if there is none."""
    if to in PLAIN:
        return None
    if to == "fp8":
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": list(fp8.BLOCK),
        }
    eight = {
        "format": "int-quantized",
        "weights": _arguments(8, "channel"),
        "input_activations": _arguments(8, "token", dynamic=True),
        "output_activations": None,
    }
    four = {
        "format": "pack-quantized",
        "weights": _arguments(4, "group", group_size=integers.GROUP),
        "input_activations": None,  # as the program that reads it likes: ours takes 8 bits
        "output_activations": None,
    }
    if to == "int8":
        groups = {"group_0": {"targets": ["Linear", *_HEADS], **eight}}
    else:
        groups = {
            "group_0": {"targets": ["Linear"], **four},
            "group_1": {"targets": _HEADS, **eight},
        }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "int-quantized" if to == "int8" else "mixed-precision",
        "config_groups": groups,
        "ignore": _KEPT,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _arguments(
    num_bits: int, strategy: str, *, group_size: int | None = None, dynamic: bool = False
) -> dict[str, object]:
    return {
        "num_bits": num_bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": dynamic,
        "actorder": None,
        "block_structure": None,
    }
