"""Models to measure with: random weights in the published format, sizes from 36 MB to 11.5 GB.

    python benchmarks/models.py [S M T ...]

    S    18M parameters, 36 MB in BF16: fits the caches of a server processor
    S64  S with heads of 64 numbers instead of 48; vLLM's attention has a list of sizes
    T    62M, for training
    M    374M, of which a token meets 93M; 749 MB in BF16: larger than its share of any cache
    L    one layer of DeepSeek-V3 at full size, 11.5B parameters in FP8 blocks of 128 by 128

Random weights route evenly: experts share no more tokens of a batch than chance has it.
"""

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from abyssal.checkpoint import names
from abyssal.checkpoint.fp8 import BLOCK, scale_shape
from abyssal.checkpoint.shards import INDEX
from abyssal.config import ModelConfig
from abyssal.data.corpus import stories
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant.convert import convert
from abyssal.quant.formats import PLAIN, Format
from abyssal.tokenizer.bpe import Tokenizer

_SMALL: dict[str, Any] = {
    "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 8, "first_k_dense_replace": 1,
    "intermediate_size": 704, "moe_intermediate_size": 128, "num_nextn_predict_layers": 0,
    "num_attention_heads": 8, "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 16, "num_experts_per_tok": 4,
    "n_group": 4, "topk_group": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_TRAINED = {
    "hidden_size": 512, "intermediate_size": 1408, "q_lora_rank": 192, "kv_lora_rank": 128,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 32,
}  # fmt: skip
_MEDIUM = {
    "vocab_size": 32768, "hidden_size": 768, "num_hidden_layers": 16, "intermediate_size": 2048,
    "num_attention_heads": 12, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 64, "num_experts_per_tok": 6,
    "n_group": 8, "topk_group": 4,
}  # fmt: skip
_LAYER = {  # everything else as released
    "vocab_size": 4096, "num_hidden_layers": 1, "first_k_dense_replace": 0,
    "num_nextn_predict_layers": 0, "max_position_embeddings": 4096,
}  # fmt: skip
MODELS = {
    "S": ModelConfig(**_SMALL),
    "S64": ModelConfig(**_SMALL | {"qk_nope_head_dim": 48}),
    "T": ModelConfig(**_SMALL | _TRAINED),
    "M": ModelConfig(**_SMALL | _MEDIUM),
    "L": ModelConfig(**_LAYER),
}
IN_FP8 = {"L"}
INNER = ("_proj.weight", "_proj_with_mqa.weight")  # matrices that the release has in FP8
SHARD_BYTES = 1 << 30  # written at a time, which bounds the memory it takes
POOL = 1 << 25  # FP8 numbers drawn; every matrix is cut from them at a place of its own
SPREAD = 64.0  # standard deviation of FP8 numbers before their scale; the largest is 448


def folder_of(name: str, root: Path, kind: str = "bf16") -> Path:
    """The folder of a model below root, written if it is not there.

    Where fewer bits are a matter of the folder, those have one of their own.
    """
    folder = root / name
    if not (folder / INDEX).exists():
        print(f"writing {folder}", flush=True)
        write(MODELS[name], folder, fp8=name in IN_FP8)
    if name in IN_FP8 or kind in PLAIN or kind not in get_args(Format):
        return folder
    converted = root / f"{name}.{kind}"
    if not converted.exists():
        print(f"writing {converted}", flush=True)
        convert(folder, converted, kind)
    return converted


def write(config: ModelConfig, folder: Path, *, fp8: bool = False) -> None:
    """Write config, tokenizer and weights in shards, the index last."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder)
    if fp8:
        _state_fp8(folder / "config.json")
    few = islice(stories(), 300)
    Tokenizer.train(few, min(config.vocab_size, 8192)).save(folder)
    where: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    for name, tensor in _tensors(config, _fp8_pieces() if fp8 else None):
        shard[name] = tensor
        if sum(held.nbytes for held in shard.values()) > SHARD_BYTES:
            _write_shard(folder, shard, where)
    _write_shard(folder, shard, where)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _write_shard(folder: Path, shard: dict[str, Tensor], where: dict[str, str]) -> None:
    file = f"model-{len(set(where.values())) + 1:05}.safetensors"
    save_file(shard, folder / file, metadata={"format": "pt"})
    where.update(dict.fromkeys(shard, file))
    shard.clear()


def _state_fp8(file: Path) -> None:
    published = json.loads(file.read_text())
    published["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK),
    }
    file.write_text(json.dumps(published, indent=2))


def _tensors(
    config: ModelConfig, pieces: Callable[[int], Tensor] | None
) -> Iterator[tuple[str, Tensor]]:
    """Every published tensor: BF16, but gate biases in FP32; inner matrices in FP8 with `pieces`.

    A matrix (O, I) has the standard deviation I^-1/2, so activations keep their size.
    """
    with torch.device("meta"):
        model = DeepSeekV3(config)
    draw = torch.Generator().manual_seed(0)
    for ours, tensor in model.state_dict().items():
        for part in names.parts(ours, tensor.shape, config):
            name, shape = part.published, part.shape
            if name.endswith("bias"):
                yield name, torch.zeros(shape)
            elif "norm" in name:
                yield name, torch.ones(shape, dtype=torch.bfloat16)
            elif pieces and name.endswith(INNER):
                yield name, pieces(math.prod(shape)).view(shape)
                scale = shape[-1] ** -0.5 / SPREAD
                yield name + names.SCALE, torch.full(scale_shape(shape), scale)
            else:
                spread = 1.0 if "embed_tokens" in name else shape[-1] ** -0.5
                values = torch.empty(shape).normal_(0.0, spread, generator=draw)
                yield name, values.bfloat16()


def _fp8_pieces() -> Callable[[int], Tensor]:
    """A function that gives `count` FP8 numbers; the same number comes again in other places."""
    draw = torch.Generator().manual_seed(0)
    pool = torch.empty(POOL).normal_(0.0, SPREAD, generator=draw).clamp_(-448, 448)
    numbers = pool.to(torch.float8_e4m3fn)

    def pieces(count: int) -> Tensor:
        start = int(torch.randint(POOL, (1,), generator=draw))
        repeats = -(-(start + count) // POOL)
        return numbers.repeat(repeats)[start : start + count].clone()

    return pieces
