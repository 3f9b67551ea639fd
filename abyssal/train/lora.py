"""LoRA: a frozen matrix learns through a product of two thin ones (Hu et al., arXiv 2106.09685).

    W' = W + alpha/r B A        A (r, in), B (out, r); B begins at 0

Matrices are those of attention, of shared experts, and of routed experts, which are stacks: there
A is (E, r, in) and B (E, out, r), a pair for every expert. The product is added before the matrix
is used, so any kernel takes it, and a published folder holds exactly what was trained: in BF16 both
are the same rounding of W'. There is no dropout. Only A and B have optimizer state; both are
float32, whatever the precision of W.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from abyssal.checkpoint import files, names, weights
from abyssal.errors import ConfigError
from abyssal.model.attention import MLA
from abyssal.model.moe import Experts, MoE
from abyssal.model.transformer import DeepSeekV3

Target = Literal["attention", "experts", "shared"]
ADAPTER = "adapter"  # the folder inside the model folder
# What a target is called in the published model, for peft's target_modules (a regular expression).
_PUBLISHED: dict[str, str] = {
    "attention": r"self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)",
    "experts": r"mlp\.experts\.\d+\.(gate_proj|up_proj|down_proj)",
    "shared": r"mlp\.shared_experts\.(gate_proj|up_proj|down_proj)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Which matrices learn, and through how thin a product."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[Target, ...] = ("attention", "experts", "shared")

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ConfigError(
                f"rank={self.rank} and alpha={self.alpha}, expected at least 1 and more than 0"
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ConfigError(
                f"targets={list(self.targets)}, expected some of attention, experts, shared, each "
                "once"
            )


class LowRank(nn.Module):
    """W (out, in) or a stack (E, out, in) -> W + scale B A, in the precision of W."""

    def __init__(self, weight: Tensor, lora: Lora, generator: torch.Generator):
        super().__init__()
        *stack, rows, columns = weight.shape
        self.scale = lora.alpha / lora.rank
        spread = 1 / math.sqrt(columns)  # as peft draws A
        A = torch.empty(*stack, lora.rank, columns).uniform_(-spread, spread, generator=generator)
        self.lora_A = nn.Parameter(A.to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(*stack, rows, lora.rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix as it is used."""
        add = torch.baddbmm if weight.ndim == 3 else torch.addmm
        return add(weight.float(), self.lora_B, self.lora_A, alpha=self.scale).to(weight.dtype)


def attach(model: DeepSeekV3, lora: Lora, seed: int) -> None:
    """Freeze a model and give the matrices of its blocks (not of MTP modules) their adapters.

    The same seed draws the same adapters.

    Raises:
        ConfigError: a target is not in this model.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for target in lora.targets:
        found = list(_matrices(model, target))
        if not found:
            raise ConfigError(f"lora.targets has {target!r}, of which this model has none")
        for module, name in found:
            adapter = LowRank(getattr(module, name), lora, generator)
            parametrize.register_parametrization(module, name, adapter)


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(isinstance(module, LowRank) for module in model.modules())


def save(model: DeepSeekV3, folder: Path) -> None:
    """Write a model folder with the adapters merged, and under ``adapter/`` the adapters alone.

    Without adapters it is just the model folder. The adapter has peft's names and file format.
    """
    weights.write(folder, model.config, merged(model))
    save_adapter(model, folder)


def save_adapter(model: DeepSeekV3, folder: Path) -> None:
    """Write the adapters alone, if there are any."""
    if not is_adapted(model):
        return
    tensors, config = adapter_tensors(model), _peft_config(model)

    def fill(draft: Path) -> None:
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        files.dump(draft / "adapter_config.json", config)

    files.publish_folder(folder / ADAPTER, fill)


def merged(model: DeepSeekV3) -> dict[str, Tensor]:
    """All tensors of the model by their names without adapters, with those added in."""
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            stem, _, inner = name.partition(".parametrizations.")
            if not inner:
                tensors[name] = tensor
            elif inner.endswith(".original"):
                matrix = inner.removesuffix(".original")
                tensors[f"{stem}.{matrix}"] = getattr(model.get_submodule(stem), matrix)
    return tensors


def adapter_tensors(model: DeepSeekV3) -> dict[str, Tensor]:
    """A and B of every published matrix, by peft's names.

    We hold the gate and up halves of a SwiGLU as one matrix: both get the same A.
    """
    found: dict[str, Tensor] = {}
    for stem, name, adapter in _adapters(model):
        matrix = getattr(model.get_submodule(stem), name)
        for part in names.parts(f"{stem}.{name}", matrix.shape, model.config):
            *stack, rows = part.place if part.place else (slice(None),)
            if isinstance(rows, int):  # a whole matrix of a stack
                stack, rows = [rows], slice(None)
            A, B = adapter.lora_A[tuple(stack)], adapter.lora_B[(*stack, rows)]
            module = f"base_model.model.{part.published.removesuffix('.weight')}"
            found[f"{module}.lora_A.weight"] = A.detach().cpu().clone()
            found[f"{module}.lora_B.weight"] = B.detach().cpu().clone()
    return found


def _adapters(model: DeepSeekV3) -> Iterator[tuple[str, str, LowRank]]:
    """The module, the name of its matrix, and the adapter."""
    for path, module in model.named_modules():
        if isinstance(module, LowRank):
            stem, _, inner = path.partition(".parametrizations.")
            yield stem, inner.split(".")[0], module


def _matrices(model: DeepSeekV3, target: Target) -> Iterator[tuple[nn.Module, str]]:
    """The modules of a target's matrices, and what they call them."""
    for module in model.layers.modules():
        if target == "attention" and isinstance(module, MLA):
            yield from ((child, "weight") for child in module.children() if _is_linear(child))
        elif target == "experts" and isinstance(module, Experts):
            yield from ((module, name) for name in ("gate_up_proj", "down_proj"))
        elif target == "shared" and isinstance(module, MoE) and module.shared_experts is not None:
            yield from ((child, "weight") for child in module.shared_experts.children())


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _peft_config(model: DeepSeekV3) -> dict[str, object]:
    """adapter_config.json as peft reads it."""
    adapters = list(_adapters(model))
    rank = adapters[0][2].lora_A.shape[-2]
    found = [
        pattern
        for pattern in _PUBLISHED.values()
        if any(pattern.split(r"\.")[0] in stem for stem, _, _ in adapters)
    ]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": adapters[0][2].scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "target_modules": rf".*\.({'|'.join(found)})",
    }
