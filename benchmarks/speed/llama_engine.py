"""llama.cpp through its C interface: tokens in, scores out; no sampler, no text."""

import sys
from statistics import median
from typing import Any

import llama_cpp as lib

from speed.engine import Engine, Prompts

ANSWER = 256  # tokens at most behind a prompt
Way = tuple[int, bool]
WAYS: list[Way] = [(1, True), (0, True), (0, False)]  # flash attention; one cache for all sequences
TOGETHER = 2048  # tokens of one call; llama.cpp cuts them into pieces of 512 itself


class LlamaCpp(Engine):
    """A context for each batch, of the kind that is fastest there; its cache holds F16."""

    def __init__(
        self, folder: str, kind: str, file: str, threads: int, sequences: int, length: int
    ):
        super().__init__(folder)
        self._log = _Log()  # kept as long as it is called
        lib.llama_log_set(self._log.callback, None)
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
        if not model:
            raise SystemExit(f"{file}: llama.cpp cannot load it")
        self._model, self._threads, self._context = model, threads, None
        self._rows = lib.llama_batch_init(TOGETHER, 0, 1)
        self._open(WAYS[0], 1, length)
        self.read([[300]])

    def prepare(self, batch: int, context: int) -> None:
        """Try all ways on a few steps, and stay with the best."""

        def steps_s(way: Way) -> float:
            self._open(way, batch, context)
            super(LlamaCpp, self).prepare(batch, context)
            return median(self.decode(4, 0.05))

        best = min(WAYS, key=steps_s)
        steps_s(best)

    def prefill(self, tokens: int, least_s: float) -> list[float]:
        """The warm-up, which has no time to take, tries both ways that matter to one prompt."""

        def read_s(way: Way) -> float:
            self._open(way, 1, tokens)
            return min(super(LlamaCpp, self).prefill(tokens, 0.0))

        if not least_s:
            best = min(WAYS[:2], key=read_s)
            self._open(best, 1, tokens)
        return super().prefill(tokens, least_s)

    def _open(self, way: Way, sequences: int, length: int) -> None:
        if self._context:
            lib.llama_free(self._context)
        self._log.cache_bytes = 0.0
        options = lib.llama_context_default_params()
        options.n_seq_max = sequences
        options.n_ctx = sequences * -(-(length + ANSWER) // 256) * 256
        options.n_batch = TOGETHER
        options.n_threads = options.n_threads_batch = self._threads
        options.flash_attn_type, options.kv_unified = way
        self._context = lib.llama_init_from_model(self._model, options)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot make a context for {sequences} sequences")
        self._cells: int = lib.llama_n_ctx(self._context)

    def read(self, prompts: Prompts) -> None:
        """As many whole prompts in a call as fit it."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._length, self._count = len(prompts[0]), len(prompts)
        together = max(TOGETHER // self._length, 1)
        for first in range(0, len(prompts), together):
            some = enumerate(prompts[first : first + together], first)
            self._pass([(t, at, i) for i, prompt in some for at, t in enumerate(prompt)])
        self._at = self._length

    def step(self) -> None:
        """A token of each sequence."""
        tokens = self._fed(self._at, self._count)
        self._pass([(token, self._at, i) for i, token in enumerate(tokens)])
        self._at += 1

    def rewind(self) -> None:
        """Forget what stands behind the prompts."""
        memory = lib.llama_get_memory(self._context)
        for i in range(self._count):
            lib.llama_memory_seq_rm(memory, i, self._length, -1)
        self._at = self._length

    def cache_bytes(self) -> float | None:
        """As its log states it, by cells."""
        return self._log.cache_bytes / self._cells if self._log.cache_bytes else None

    def _pass(self, rows: list[tuple[int, int, int]]) -> None:
        """One call over rows of token, position and sequence; scores behind each last one."""
        batch = self._rows
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i + 1 == len(rows) or rows[i + 1][2] != sequence
        status = lib.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode says {status}"
        lib.llama_synchronize(self._context)


class _Log:
    """Errors are shown; the size of the cache is read out of what it tells."""

    def __init__(self) -> None:
        self.cache_bytes = 0.0
        self.callback: Any = lib.llama_log_callback(self._take)

    def _take(self, level: int, text: bytes, _: object) -> None:
        line = text.decode(errors="replace")
        if "KV buffer size" in line:
            self.cache_bytes += float(line.split("=")[1].split()[0]) * 2**20
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            print(line, end="", file=sys.stderr)
