"""transformers: the model called with its cache, without `generate` around it."""

from typing import Any

import torch
import transformers

from speed.engine import Engine, Prompts

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Transformers(Engine):
    """Experts as grouped products, the fastest of its ways for a whole prompt."""

    def __init__(self, folder: str, kind: str, threads: int, sequences: int, length: int):
        super().__init__(folder)
        torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=KINDS[kind], experts_implementation="grouped_mm"
        )
        self._model: Any = model.eval()
        self.read([[300]])

    def read(self, prompts: Prompts) -> None:
        """One call."""
        self._cache, self._steps = None, 0
        self._size = len(prompts), len(prompts[0])
        self._pass(torch.tensor(prompts))

    def step(self) -> None:
        """One call with a token of each sequence."""
        count, length = self._size
        self._pass(torch.tensor(self._fed(length + self._steps, count)).unsqueeze(1))
        self._steps += 1

    def rewind(self) -> None:
        """Cut the cache."""
        if self._steps:
            self._cache.crop(-self._steps)
        self._steps = 0

    def complete(self, prompts: Prompts, count: int) -> None:
        """`generate`; all prompts are as long as each other."""
        inputs = torch.tensor(prompts)
        with torch.inference_mode():
            rows = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        assert rows.shape[1] == inputs.shape[1] + count

    def cache_bytes(self) -> float | None:
        """Of the tensors its cache holds."""
        held = [t for layer in self._cache.layers for t in (layer.keys, layer.values)]
        tokens = held[0].shape[0] * held[0].shape[-2]
        return sum(tensor.nbytes for tensor in held) / tokens

    def _pass(self, tokens: torch.Tensor) -> None:
        with torch.inference_mode():
            output = self._model(
                tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        self._cache = output.past_key_values
        output.logits[:, -1].argmax(-1)
