"""Convert a large folder, kill it half way, go on, and hold the result to an undisturbed one.

    python benchmarks/convert.py                    20 GB in BF16, 10 in FP8: 40 GB of disk
    python benchmarks/convert.py --bytes 200e6      the same in small

A synthetic folder in FP8 with V3's shapes at a fraction of their size is made, then in processes of
their own: FP8 to BF16 undisturbed, the same killed (SIGKILL) half way and resumed, and BF16 back to
FP8, killed and resumed too. Compared by SHA-256: undisturbed and resumed, FP8 before and after.

Peak memory of a process is told apart: `peak_rss` is its VmHWM, with the pages of mapped source
files, which the system takes back when it needs them; `peak_anonymous` is the largest RssAnon seen,
which nobody can take: what a machine must have. (ru_maxrss would count this process before exec.)
"""

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from abyssal.checkpoint import files, fp8, names
from abyssal.checkpoint.shard_file import Entry, ShardFile
from abyssal.checkpoint.shards import INDEX, headers, opened
from abyssal.config import ModelConfig
from abyssal.model.transformer import DeepSeekV3
from abyssal.quant import formats

LAYER = {
    "vocab_size": 32768, "hidden_size": 1792, "intermediate_size": 4608, "num_attention_heads": 32,
    "q_lora_rank": 384, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "moe_intermediate_size": 512, "n_routed_experts": 64,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "max_position_embeddings": 4096,
}  # fmt: skip
POLL_S = 0.02


def main() -> None:
    """Make, convert, kill, resume, compare; one line each, JSON at the end."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--bytes", type=float, default=20e9, help="of the BF16 folder")
    options.add_argument("--shard-bytes", type=int, default=1_000_000_000)
    options.add_argument("--dir", type=Path, default=Path("out/bench/convert"))
    args = options.parse_args()
    shutil.rmtree(args.dir, ignore_errors=True)
    args.dir.mkdir(parents=True)
    free = shutil.disk_usage(args.dir).free
    if free < 2.1 * args.bytes:
        options.error(f"{free / 1e9:.0f} GB of disk are free, {2.1 * args.bytes / 1e9:.0f} wanted")
    try:
        print(json.dumps(_figures(args.dir, int(args.bytes), args.shard_bytes), indent=2))
    finally:
        shutil.rmtree(args.dir)


def _figures(folder: Path, num_bytes: int, shard_bytes: int) -> dict[str, object]:
    first, plain, again = folder / "fp8", folder / "bf16", folder / "again"
    began = time.perf_counter()
    config = make(first, num_bytes // 2, shard_bytes)
    shown: dict[str, object] = {
        "fp8_bytes": _size(first), "blocks": config.num_hidden_layers, "shards": _shards(first),
        "tensors": len(headers(first)), "made_s": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    _say("made", shown)
    shown["meta check of deepseek-v3"] = _say("meta", meta_check())
    shown["undisturbed"] = _say("fp8 to bf16", converted(first, plain, "--bf16", shard_bytes))
    undisturbed = _hashes(plain)
    shutil.rmtree(plain)
    shown["killed and resumed"] = [
        _say("killed", converted(first, plain, "--bf16", shard_bytes, kill_at=0.5)),
        _say("resumed", converted(first, plain, "--bf16", shard_bytes)),
    ]
    shown["bf16_bytes"] = _size(plain)
    shown["resumed is undisturbed, by hash"] = _hashes(plain) == undisturbed
    shown["back, killed and resumed"] = [
        _say("killed", converted(plain, again, "--fp8", shard_bytes, kill_at=0.5)),
        _say("resumed", converted(plain, again, "--fp8", shard_bytes)),
    ]
    shown["fp8 came back byte by byte"] = _digests(again) == _digests(first)
    return shown


def make(folder: Path, num_bytes: int, shard_bytes: int) -> ModelConfig:
    """Write a folder in FP8 of about that size: random numbers, all kinds of them but NaN."""
    config, plan = _sized(num_bytes)
    folder.mkdir()
    weight_map: dict[str, str] = {}
    numbers = torch.randint(0, 127, (2**24,), dtype=torch.uint8)  # 0 to 448
    numbers |= torch.randint(0, 2, (2**24,), dtype=torch.uint8) << 7
    shards = list(_cut(plan, shard_bytes))
    for at, entries in enumerate(shards, 1):
        file = f"model-{at:05d}-of-{len(shards):05d}.safetensors"
        with ShardFile(folder / file, entries) as shard:
            for name, entry in entries.items():
                shard.put(name, _random(name, entry, numbers))
        weight_map |= dict.fromkeys(entries, file)
    total = sum(entry.num_bytes for entry in plan.values())
    files.dump(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    quantization = {"quantization_config": formats.quantization_config("fp8")}
    files.dump(folder / "config.json", config.to_dict() | quantization)
    return config


def _sized(num_bytes: int) -> tuple[ModelConfig, dict[str, Entry]]:
    """A model of as many blocks as that size takes, and its published tensors."""
    from abyssal.checkpoint.names import parts

    blocks = 2
    while True:
        config = ModelConfig(num_hidden_layers=blocks, first_k_dense_replace=1, **LAYER)
        plan: dict[str, Entry] = {}
        with torch.device("meta"):
            model = DeepSeekV3(config).state_dict()
        for name, tensor in model.items():
            for published, _, shape in parts(name, tensor.shape, config):
                if formats.kind_of(published, "fp8"):
                    plan[published] = Entry("F8_E4M3", shape)
                    plan[published + names.SCALE] = Entry("F32", fp8.scale_shape(shape))
                else:
                    plan[published] = Entry("F32" if published.endswith("_bias") else "BF16", shape)
        if sum(entry.num_bytes for entry in plan.values()) >= num_bytes:
            return config, plan
        blocks += 1


def _cut(plan: dict[str, Entry], shard_bytes: int) -> Iterator[dict[str, Entry]]:
    shard: dict[str, Entry] = {}
    for name, entry in plan.items():
        shard[name] = entry
        if sum(e.num_bytes for e in shard.values()) >= shard_bytes:
            yield shard
            shard = {}
    if shard:
        yield shard


def _random(name: str, entry: Entry, numbers: torch.Tensor) -> torch.Tensor:
    if entry.dtype == "F8_E4M3":
        count = entry.shape[0] * entry.shape[1]
        start = int(torch.randint(0, numbers.numel(), ()))
        picked = numbers.roll(start)[:count]
        return picked.view(entry.shape).view(torch.float8_e4m3fn)
    if entry.dtype == "F32":
        return torch.rand(entry.shape) * 1e-3 + 1e-6
    return torch.randn(entry.shape).bfloat16()


def converted(
    source: Path, out: Path, to: str, shard_bytes: int, kill_at: float | None = None
) -> dict[str, object]:
    """Convert in a process of its own; with kill_at, end it when that share of shards is there."""
    command = [sys.executable, "-m", "abyssal", "convert", str(source), str(out), to,
               "--shard-size", str(shard_bytes), "--no-check", "--json"]  # fmt: skip
    draft = out.with_name(f".{out.name}.writing")

    def is_enough() -> bool:
        # Files so far; the last is on its way.
        so_far = sorted(draft.glob("model-*")) if kill_at else []
        return bool(so_far) and len(so_far) > (kill_at or 1) * int(so_far[0].stem.split("-")[-1])

    figures = _watched(command, is_enough if kill_at else None)
    output = figures.pop("output")
    if kill_at is None:
        said = json.loads(str(output))
        figures["shards"], figures["taken_over"] = said["shards"], said["shards_taken_over"]
        if not said["shards_taken_over"]:
            moved = said["bytes_before"] + said["bytes_after"]
            figures["read and written, GB/s"] = round(moved / float(str(figures["s"])) / 1e9, 3)
    return figures


def meta_check() -> dict[str, object]:
    """What the shapes of the released model's tensors cost, as every conversion asks for them."""
    code = (
        "import torch; from abyssal.config import ModelConfig; "
        "from abyssal.model.transformer import DeepSeekV3; from abyssal.checkpoint import names; "
        "config = ModelConfig.preset('deepseek-v3'); torch.set_default_device('meta'); "
        "state = DeepSeekV3(config).state_dict(); "
        "print(sum(len(names.parts(n, t.shape, config)) for n, t in state.items()))"
    )
    return _watched([sys.executable, "-c", code], None)


def _watched(command: list[str], is_enough: Callable[[], bool] | None) -> dict[str, object]:
    """Run a command, perhaps to be killed; its time and its peaks of memory."""
    began, resident, anonymous = time.perf_counter(), 0, 0
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while True:
        code = child.poll()
        if code is not None:
            break
        memory = _memory(child.pid)
        resident = max(resident, memory.get("VmHWM", 0))
        anonymous = max(anonymous, memory.get("RssAnon", 0))
        if is_enough and is_enough():
            child.kill()
            is_enough = None
        time.sleep(POLL_S)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    assert child.stdout
    return {
        "s": round(time.perf_counter() - began, 1),
        "peak_rss": resident,
        "peak_anonymous": anonymous,
        "killed": code != 0,
        "output": child.stdout.read().strip(),
    }


def _memory(pid: int) -> dict[str, int]:
    """Bytes of each kind of memory that a process has or had at most."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return {}
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")
    }


def _hashes(folder: Path) -> object:
    return files.read_json(folder / files.MANIFEST)["files"]


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every tensor, wherever it lies."""
    shards = opened(folder)
    found = {}
    for name in shards.stored:
        shards.turn_to(name)
        whole = shards.raw(name).contiguous().flatten().view(torch.uint8).numpy()
        found[name] = hashlib.sha256(whole).hexdigest()
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _shards(folder: Path) -> int:
    return len(list(folder.glob("model-*")))


def _say(what: str, figures: dict[str, object]) -> dict[str, object]:
    print(f"{what}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    main()
