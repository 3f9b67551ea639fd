"""What a model lost when its weights were put into fewer bits.

    loss           bits per byte of the converted model - bits per byte of its source
    weight error   ||W - W'|| / ||W||
    output error   ||x W^T - x W'^T|| / ||x W^T||, x what the source feeds this matrix on the text

Frobenius norms. Experts have weight errors only: each meets too few tokens of a short text. The
converted model is measured with its weights multiplied out, so that this is the loss of the weights
alone; kernels that also round what they multiply with lose a little more.

    T tokens    O output size    I input size
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from abyssal.batch import Batch
from abyssal.checkpoint import names, shards
from abyssal.checkpoint.shards import Shards
from abyssal.config import ModelConfig
from abyssal.data import corpus
from abyssal.data.documents import DropReport, read_documents
from abyssal.engine.memory import free_bytes
from abyssal.errors import DataError
from abyssal.evals.harness import bits_per_byte
from abyssal.kernels.swiglu import swiglu
from abyssal.model.layers import MLP
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

TEXT_BYTES = 100_000  # of text are enough for differences of 0.001 bits per byte
TOKENS = 512  # to record what reaches each matrix
_SMALL_BYTES = 2**30  # models below are measured in float32
_BESIDE = 1.25  # what a pass needs beside the weights
_CHANCE = 0.98  # of the bits that a blind guess among all tokens costs


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixError:
    """How far one published matrix is from what it was."""

    name: str
    weight_error: float
    output_error: float | None  # None: nothing reached it in this text, or it is of an expert


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """A source and what was made of it, compared."""

    before: float | None  # bits per byte; None: not measurable, and `unmeasured` says why
    after: float | None
    unmeasured: str | None
    matrices: tuple[MatrixError, ...]  # the worst first

    @property
    def loss(self) -> float | None:
        """What the conversion costs, in bits per byte."""
        return None if self.before is None or self.after is None else self.after - self.before


def held_out(path: str | Path | None = None) -> list[str]:
    """Documents of a .txt or .jsonl file, or else of the stories that the demo does not train on.

    Whole documents up to TEXT_BYTES in all; the first is cut if it alone is longer.

    Raises:
        DataError: the file cannot be read, or holds no text.
    """
    texts: list[str] = []
    room = TEXT_BYTES
    for text in _documents(path):
        if texts and len(text.encode()) > room:
            break
        texts.append(text.encode()[:TEXT_BYTES].decode(errors="ignore"))
        room -= len(texts[-1].encode())
    if not any(texts):
        raise DataError(f"{path}: no text to measure on; name a file with some")
    return texts


def _documents(path: str | Path | None) -> Iterable[str]:
    if path is None:
        return corpus.stories("valid")
    return (document.text for document in read_documents(path, DropReport()))


def too_large(folder: str | Path) -> str | None:
    """Why the model of a folder cannot be measured on this machine; None if it fits."""
    opened = shards.opened(Path(folder))
    needed = sum(
        math.prod(opened.shape(name)) * opened.dtype(name).itemsize for name in opened.weights()
    )
    if needed < _SMALL_BYTES:
        needed *= 2  # measured in float32
    needed, free = round(needed * _BESIDE), free_bytes(torch.device("cpu"))
    if needed <= free:
        return None
    return (
        f"measuring takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; "
        "measure both folders on a larger machine with `abyssal eval`"
    )


def measure(source: str | Path, converted: str | Path, texts: Sequence[str]) -> Fidelity:
    """Compare a folder with what was made of it, on texts that neither was trained on.

    Raises:
        CheckpointError: a folder cannot be read.
    """
    source, converted = Path(source), Path(converted)
    try:
        tokenizer = Tokenizer.load(source)
    except DataError as problem:
        reason = f"there is no tokenizer to measure bits per byte with ({problem})"
        return Fidelity(before=None, after=None, unmeasured=reason, matrices=_worst(
            source, converted, {}))  # fmt: skip
    model = _model(source)
    inputs = recorded_inputs(model, _batch(tokenizer, texts, model.config))
    matrices = _worst(source, converted, inputs)
    result = bits_per_byte(model, tokenizer, texts)
    if result.bits / result.tokens >= _CHANCE * math.log2(model.config.vocab_size):
        reason = (
            f"the source needs {result.bits_per_byte:.2f} bits per byte, no better than chance; "
            "train it, or name a text that it knows the kind of with --text FILE"
        )
        return Fidelity(before=None, after=None, unmeasured=reason, matrices=matrices)
    del model, inputs  # one model in memory at a time
    after = bits_per_byte(_model(converted), tokenizer, texts)
    return Fidelity(
        before=result.bits_per_byte,
        after=after.bits_per_byte,
        unmeasured=None,
        matrices=matrices,
    )


@torch.inference_mode()
def recorded_inputs(model: DeepSeekV3, batch: Batch) -> dict[str, Tensor]:
    """What each linear module (O, I) multiplies in a pass (T, I), by the name of its weight."""
    found: dict[str, Tensor] = {}
    handles = []

    def record(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name] = args[0].flatten(0, -2)
        if isinstance(module, MLP):
            found[f"{name}.gate_up_proj.weight"] = found.pop(name)
            hidden = swiglu(nn.functional.linear(args[0], module.gate_up_proj.weight))
            found[f"{name}.down_proj.weight"] = hidden.flatten(0, -2)

    for name, module in model.named_modules():
        if isinstance(module, MLP | nn.Linear):
            at = name if isinstance(module, MLP) else f"{name}.weight"

            def hook(module: nn.Module, args: tuple[Tensor, ...], at: str = at) -> None:
                record(at, module, args)

            handles.append(module.register_forward_pre_hook(hook))
    try:
        hidden = model(batch, mtp=bool(model.mtp)).hidden
        model.lm_head(hidden)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _model(folder: Path) -> DeepSeekV3:
    """The model, small ones in float32, where rounding of the passes themselves is no matter."""
    model = DeepSeekV3.load(folder)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return model.float() if size < _SMALL_BYTES else model


def _batch(tokenizer: Tokenizer, texts: Sequence[str], config: ModelConfig) -> Batch:
    """The first TOKENS tokens, each document behind a BOS."""
    sequences: list[list[int]] = []
    room = TOKENS
    for text in texts:
        tokens = [tokenizer.bos_token_id, *tokenizer.encode(text)]
        sequences.append(tokens[: min(room, config.max_position_embeddings)])
        room -= len(sequences[-1])
        if not room:
            break
    return Batch.from_sequences(sequences)


def _worst(source: Path, converted: Path, inputs: dict[str, Tensor]) -> tuple[MatrixError, ...]:
    """All matrices that changed, those whose output suffers most first, then by weight."""
    before, after = shards.opened(source), shards.opened(converted)
    changed = [n for n in before.weights() if len(before.shape(n)) == 2 and _coded(after, n)]
    known = _by_published_name(ModelConfig.load(source), inputs)
    errors = [_error(name, before, after, known.get(name)) for name in changed]
    return tuple(sorted(errors, key=_badness, reverse=True))


def _coded(opened: Shards, published: str) -> bool:
    entry = opened.stored.get(published)
    return entry is None or entry.dtype not in shards.FLOATS


def _badness(error: MatrixError) -> float:
    return error.weight_error if error.output_error is None else error.output_error


def _by_published_name(config: ModelConfig, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    shapes = {}
    with torch.device("meta"):
        for name, tensor in DeepSeekV3(config).state_dict().items():
            shapes[name] = tensor.shape
    return {
        part.published: x
        for name, x in inputs.items()
        for part in names.parts(name, shapes[name], config)
    }


def _error(name: str, before: Shards, after: Shards, x: Tensor | None) -> MatrixError:
    whole = before.tensor(name).float()
    lost = after.tensor(name).float() - whole
    output = None
    if x is not None:
        output = _ratio(x.float() @ lost.T, x.float() @ whole.T)
    return MatrixError(name=name, weight_error=_ratio(lost, whole), output_error=output)


def _ratio(lost: Tensor, whole: Tensor) -> float:
    """||lost|| / ||whole||; 0 where nothing is lost of nothing."""
    size = float(whole.norm())
    return float(lost.norm()) / size if size else 0.0
