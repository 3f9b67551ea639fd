"""What FP8 training keeps, and what sums of 14 bits would cost: figures that need no training.

    python benchmarks/fp8_costs.py [--model out/demo/base --shards out/demo/data/stories]

Counts the bytes that one pass of tiny and mini saves for its backward, in BF16 and in FP8;
multiplies random matrices over 4,096 inputs with tensor cores' sums of 14 bits, promoted to float32
every 128 inputs and not (arXiv 2412.19437, sections 3.3.2 and 3.5.2); and holds the gradients of a
trained model to those of float32, over some batches.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from abyssal.batch import Batch
from abyssal.config import ModelConfig
from abyssal.data.packing import Packer
from abyssal.data.shards import Shards
from abyssal.data.sources import Source
from abyssal.kernels.fp8_product import promoted, unpromoted
from abyssal.kernels.fp8_tiles import Fp8, decode, tiles
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant import fp8
from abyssal.train.loss import losses
from abyssal.train.machine import Machine
from abyssal.train.trainer import working_copy

TOKENS, SEQUENCE = 4096, 256
INPUTS, SIDE = 4096, 32
BATCHES = 4
ARMS = {
    "BF16": None,
    "FP8 as in the paper": Fp8(),
    "gradients in E5M2": Fp8(gradients="e5m2"),
    "one scale a tensor": Fp8(scales="tensor"),
    "gradients in blocks of 128 by 128": Fp8(gradient_blocks="block"),
}


def main() -> None:
    """Three tables."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", type=Path, default=Path("out/demo/base"))
    options.add_argument("--shards", type=Path, default=Path("out/demo/data/stories"))
    args = options.parse_args()
    print("Bytes a token that a pass keeps for its backward, weights left out\n")
    print("| preset | products in | 8-bit numbers, 12-bit ones | scales, other float32 | BF16 | "
          "whole numbers | all |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for preset in ("tiny", "mini"):
        for how in (None, Fp8()):
            kept = _kept(preset, how)
            names = ("eight", "float32", "bfloat16", "int")
            row = " | ".join(f"{kept[name] / TOKENS:,.0f}" for name in names)
            total = sum(kept.values()) / TOKENS
            print(f"| {preset} | {'FP8' if how else 'BF16'} | {row} | {total:,.0f} |")
    print(f"\nLargest error of a product of random matrices, K = {INPUTS}\n")
    print("| numbers | bits | not promoted | promoted every 128 |\n|---|---|---|---|")
    for name, draw in (("between 0 and 1", torch.rand), ("normal", torch.randn)):
        for bits in (13, 14, 15):
            errors = _errors(draw, bits)
            print(f"| {name} | {bits} | {errors[0]:.2%} | {errors[1]:.3%} |")
    if (args.model / "config.json").is_file():
        _gradients(args.model, args.shards)


def _gradients(folder: Path, shards: Path) -> None:
    """How far gradients are from float32's, by part of the model; and the loss."""
    source = Source(shards=Shards(shards), weight=1.0, name="text")
    packer = Packer(
        [source], tokens_per_batch=TOKENS, seq_len=SEQUENCE, isolate=False, fim_rate=0.0, seed=99
    )
    batches = [packer.next().batch for _ in range(BATCHES)]
    exact, loss = _pass(folder, torch.float32, None, batches)
    parts = {"attention": "self_attn", "experts": "mlp.experts", "feed-forwards": "shared_experts",
             "router": "mlp.gate.", "embedding": "embed_tokens"}  # fmt: skip
    print(f"\nGradients of {folder} beside float32's, {BATCHES} batches of {TOKENS:,} tokens\n")
    print(f"| products | {' | '.join(parts)} | loss |\n|---|{'---|' * (len(parts) + 1)}")
    for name, how in ARMS.items():
        found, other = _pass(folder, torch.bfloat16, how, batches)
        errors = " | ".join(f"{_distance(found, exact, word):.1%}" for word in parts.values())
        print(f"| {name} | {errors} | {other / loss - 1:+.3%} |")


def _pass(
    folder: Path, dtype: torch.dtype, how: Fp8 | None, batches: list[Batch]
) -> tuple[dict[str, Tensor], float]:
    """Gradients and the mean loss."""
    machine = Machine(torch.device("cpu"), torch.get_num_threads(), 1.0, dtype)
    model = working_copy(DeepSeekV3.load(folder), machine)
    if how is not None:
        fp8.apply(model, how)
    total = 0.0
    for batch in batches:
        top_k = model.config.num_experts_per_tok
        head = model.lm_head.weight
        loss = losses(model(batch), head, batch, top_k=top_k, balance=False).main
        (loss / TOKENS / len(batches)).backward()
        total += float(loss.detach()) / TOKENS / len(batches)
    grads = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    return grads, total


def _distance(found: dict[str, Tensor], exact: dict[str, Tensor], word: str) -> float:
    names = [name for name in exact if word in name]
    error = sum(float((found[name] - exact[name]).square().sum()) for name in names)
    return (error / sum(float(exact[name].square().sum()) for name in names)) ** 0.5


def _kept(preset: str, how: Fp8 | None) -> Counter[str]:
    """Bytes by kind; each storage once."""
    model = DeepSeekV3(ModelConfig.preset(preset)).initialize(torch.Generator().manual_seed(0))
    machine = Machine(torch.device("cpu"), torch.get_num_threads(), 1.0, torch.bfloat16)
    model = working_copy(model, machine)
    if how is not None:
        fp8.apply(model, how)
    tokens = torch.randint(0, 4096, (TOKENS,), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(SEQUENCE).repeat(TOKENS // SEQUENCE)
    batch = Batch(tokens, positions, torch.arange(0, TOKENS + 1, SEQUENCE))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes = {parameter.numel() for parameter in model.parameters() if parameter.ndim > 1}
    kept: Counter[str] = Counter()
    seen: dict[int, Tensor] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        is_weight = tensor.dtype == torch.float8_e4m3fn and tensor.numel() in sizes
        if address not in weights and address not in seen and not is_weight:
            seen[address] = tensor
            kept[_kind(tensor)] += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(batch).hidden
    del hidden
    return kept


def _kind(tensor: Tensor) -> str:
    if tensor.element_size() == 1:
        return "eight"
    if not tensor.is_floating_point():
        return "int"
    return str(tensor.dtype).removeprefix("torch.")


def _errors(draw, bits: int) -> list[float]:
    """Of the sum without promotion and with it: the largest, relative to the largest result."""
    generator = torch.Generator().manual_seed(0)
    one, other = (tiles(draw(SIDE, INPUTS, generator=generator), spread="tensor") for _ in range(2))
    exact = decode(one).double() @ decode(other).double().T
    return [
        float((function(one, other, bits=bits) - exact).abs().max() / exact.abs().max())
        for function in (unpromoted, promoted)
    ]


if __name__ == "__main__":
    main()
