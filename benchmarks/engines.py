"""What benchmarks/serve.py compares: our engine and two peers, in a process and behind HTTP.

Each continues a batch of prompts greedily and goes on past end-of-sentence. A peer has several ways
to run; `ways` names them, and the benchmark takes the one that is fastest at each batch size.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from servers import abyssal_serve, llama_serve

ENGINES = {  # kind and precision
    "abyssal (FP32)": ("abyssal", "float32"),
    "transformers (FP32)": ("transformers", "float32"),
    "llama.cpp (FP32)": ("llama.cpp", "float32"),
    "abyssal (BF16)": ("abyssal", "bfloat16"),
    "transformers (BF16)": ("transformers", "bfloat16"),
    "llama.cpp (BF16)": ("llama.cpp", "bfloat16"),
    "abyssal serve (FP32)": ("abyssal serve", "float32"),
    "llama.cpp server (FP32)": ("llama.cpp server", "float32"),
    "llama.cpp server (BF16)": ("llama.cpp server", "bfloat16"),
}
NEEDS = {  # modules that setup does not install
    "llama.cpp": ("llama_cpp", "gguf"),
    "llama.cpp server": ("llama_cpp", "gguf", "sse_starlette", "starlette_context"),
}
Prompts = list[list[int]]  # as long as each other
Answers = Prompts | list[str]  # a server gives text


class Engine(Protocol):
    """What the benchmark asks of an engine or a server."""

    ways: Sequence[str]

    def choose(self, way: str, batch: int, length: int) -> None:
        """Get ready to run so, with `batch` sequences of `length` tokens, the answers included."""

    def generate(self, prompts: Prompts, count: int) -> Answers:
        """The next count tokens of every prompt."""

    def close(self) -> None:
        """Let go of everything."""


def open_engine(name: str, folder: Path, files: Path, length: int, threads: int) -> Engine:
    """The engine of that name with the model of a folder, for sequences of at most `length`.

    llama.cpp reads a file of its own, which is left in `files` for the next one.
    """
    kind, precision = ENGINES[name]
    file = files / f"{precision}.gguf"
    if kind.startswith("llama.cpp") and not file.exists():
        from llama_file import write

        write(folder, file, precision)
    match kind:
        case "abyssal":
            return Abyssal(folder, precision, threads)
        case "transformers":
            return Transformers(folder, precision, threads)
        case "llama.cpp":
            return LlamaCpp(file, threads)
        case "abyssal serve":
            return abyssal_serve(folder, threads)
        case _:
            return llama_serve(folder, file, length, threads)


class Abyssal:
    """LLM.generate as anybody calls it: scheduler, sampler and decoding to text included."""

    ways = ("as it is",)

    def __init__(self, folder: Path, precision: str, threads: int):
        import torch

        from abyssal.engine.llm import LLM

        torch.set_num_threads(threads)
        self._llm = LLM(folder, dtype=getattr(torch, precision))

    def choose(self, way: str, batch: int, length: int) -> None:
        """Nothing: there is one way."""

    def generate(self, prompts: Prompts, count: int) -> Prompts:
        """One call for the whole batch."""
        done = self._llm.generate(prompts, temperature=0, max_tokens=count, ignore_eos=True)
        return [completion.tokens for completion in done]

    def close(self) -> None:
        """Nothing is open."""


class Transformers:
    """`generate` of transformers, with each of its ways to compute experts."""

    ways = ("grouped_mm", "batched_mm", "eager")

    def __init__(self, folder: Path, precision: str, threads: int):
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, precision)
        )
        model.generation_config.eos_token_id = None  # so that it goes on
        self._torch, self._model = torch, model.eval()

    def choose(self, way: str, batch: int, length: int) -> None:
        """Take one of the ways to compute experts."""
        self._model.set_experts_implementation(way)

    def generate(self, prompts: Prompts, count: int) -> Prompts:
        """One call for the whole batch."""
        inputs = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            rows = self._model.generate(
                inputs,
                attention_mask=self._torch.ones_like(inputs),
                max_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        tokens: Prompts = rows[:, inputs.shape[1] :].tolist()
        return tokens

    def close(self) -> None:
        """Nothing is open."""


class LlamaCpp:
    """llama.cpp through its C interface: ids in, ids out, one llama_decode for the whole batch.

    Nothing is added to its own time but one argmax over all rows and the filling of its arrays.
    The cache holds F16, its default; sequences share one cache or have one each ("split").
    """

    ways = ("flash", "flash split", "plain", "plain split")

    def __init__(self, file: Path, threads: int):
        import llama_cpp

        self._lib, self._threads = llama_cpp, threads
        self._quiet = llama_cpp.llama_log_callback(_show_errors)  # kept as long as it is called
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        defaults = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), defaults)
        if not self._model:
            raise SystemExit(f"{file}: llama.cpp cannot load it; its own words are above")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._context: Any = None

    def choose(self, way: str, batch: int, length: int) -> None:
        """A new context of the kind that `way` names."""
        self._free()
        options = self._lib.llama_context_default_params()
        options.n_seq_max = batch
        options.n_ctx = batch * -(-length // 256) * 256  # whole blocks, as it would round up itself
        options.n_batch = batch * length  # all prompts at once
        options.n_threads = options.n_threads_batch = self._threads
        options.flash_attn_type = int("flash" in way)
        options.kv_unified = "split" not in way
        self._context = self._lib.llama_init_from_model(self._model, options)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot run {batch} sequences of {length} tokens ({way})")
        self._rows = self._lib.llama_batch_init(options.n_batch, 0, 1)

    def generate(self, prompts: Prompts, count: int) -> Prompts:
        """Read all prompts in one pass, then take a token of each a pass."""
        import numpy as np

        lib, length = self._lib, len(prompts[0])
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        where = np.arange(length)
        tokens = np.array(prompts)
        sequences = np.repeat(np.arange(len(prompts)), length)
        last = np.tile(where == length - 1, len(prompts))
        self._pass(tokens.ravel(), np.tile(where, len(prompts)), sequences, last)
        drawn = [self._greedy(len(prompts))]
        everyone = np.arange(len(prompts))
        for position in range(length, length + count - 1):
            self._pass(drawn[-1], np.full_like(everyone, position), everyone, everyone >= 0)
            drawn.append(self._greedy(len(prompts)))
        answers: Prompts = np.stack(drawn, axis=1).tolist()
        return answers

    def _pass(self, tokens: Any, positions: Any, sequences: Any, wanted: Any) -> None:
        from numpy.ctypeslib import as_array

        rows, size = self._rows, (len(tokens),)
        rows.n_tokens = len(tokens)
        as_array(rows.token, size)[:] = tokens
        as_array(rows.pos, size)[:] = positions
        as_array(rows.n_seq_id, size)[:] = 1
        as_array(rows.logits, size)[:] = wanted
        of_row = rows.seq_id
        for row, sequence in enumerate(sequences.tolist()):
            of_row[row][0] = sequence
        status = self._lib.llama_decode(self._context, rows)
        assert status == 0, f"llama_decode says {status}"

    def _greedy(self, num_rows: int) -> Any:
        from numpy.ctypeslib import as_array

        logits = as_array(self._lib.llama_get_logits(self._context), (num_rows, self._num_tokens))
        return logits.argmax(axis=1)

    def close(self) -> None:
        """Free the context and the model."""
        self._free()
        self._lib.llama_model_free(self._model)

    def _free(self) -> None:
        if self._context:
            self._lib.llama_batch_free(self._rows)
            self._lib.llama_free(self._context)
            self._context = None


def _show_errors(level: int, text: bytes, _: object) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(text.decode(errors="replace"), end="", file=sys.stderr)
