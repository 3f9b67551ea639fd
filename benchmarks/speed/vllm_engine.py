"""vLLM on the CPU, in an environment of its own: LLM.generate, its only way in.

Latent attention is off (VLLM_MLA_DISABLE): its kernel for it takes DeepSeek-V3's own sizes alone.
"""

import os
import time

import vllm

from speed.engine import FEWEST, Engine, Prompts


class VLLM(Engine):
    """A step's time is what `steps` more tokens cost, by one."""

    def __init__(self, folder: str, kind: str, threads: int, sequences: int, length: int):
        super().__init__(folder)
        self._llm = vllm.LLM(
            model=folder,
            dtype={"bf16": "bfloat16", "fp32": "float32"}[kind],
            skip_tokenizer_init=True,
            max_model_len=length + 64,
            max_num_seqs=sequences,
            max_num_batched_tokens=4096,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self.complete([[300]], 1)

    def read(self, prompts: Prompts) -> None:
        """Up to one token behind each."""
        self._ready = prompts
        self.complete(prompts, 1)

    def prepare(self, batch: int, context: int) -> None:
        """Shapes of this batch are warm then."""
        self._ready = self._prompts([context] * batch)
        self.complete(self._ready, 4)

    def decode(self, steps: int, least_s: float) -> list[float]:
        """The difference of two whole calls."""
        samples: list[float] = []
        while len(samples) < FEWEST or sum(samples) * steps < least_s:
            long, short = (self._timed(count) for count in (steps + 1, 1))
            samples.append((long - short) / steps)
            if (long + short) * len(samples) > 4 * max(least_s, 0.5):
                break
        return samples

    def complete(self, prompts: Prompts, count: int) -> None:
        """LLM.generate, without text."""
        params = vllm.SamplingParams(
            temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        done = self._llm.generate(inputs, params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == count for output in done)

    def cache_bytes(self) -> float | None:
        """Of the space it was given, by the tokens it holds."""
        held = self._llm.llm_engine.vllm_config.cache_config.kv_cache_size_tokens
        return int(os.environ["VLLM_CPU_KVCACHE_SPACE"]) * 2**30 / held if held else None

    def _timed(self, count: int) -> float:
        start = time.perf_counter()
        self.complete(self._ready, count)
        return time.perf_counter() - start
