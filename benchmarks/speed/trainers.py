"""One training step, three times: forward, cross-entropy, backward and AdamW over float32 masters.

Matrix products run in BF16 in all of them; moments are float32, nothing is clipped, and no balance
loss is added, for the peers have none.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from speed.models import MODELS

RATE = 1e-4
WARM = 2  # steps before any is timed; compilation is in them


class Trainer(ABC):
    """A step to repeat, on the same random tokens."""

    def __init__(self, model: str, threads: int, rows: int, length: int):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._config = MODELS[model]
        self._tokens = torch.randint(3, self._config.vocab_size, (rows, length + 1))
        self._step = self._build()
        for _ in range(WARM):
            self._step()

    def train(self, steps: int) -> list[float]:
        """Seconds of each step."""
        samples = []
        for _ in range(steps):
            start = time.perf_counter()
            self._step()
            samples.append(time.perf_counter() - start)
        return samples

    def memory(self) -> dict[str, float]:
        """Bytes this process held at most."""
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}

    @abstractmethod
    def _build(self) -> Callable[[], object]:
        """Make the model and its optimizer; what comes back takes one step."""


class Abyssal(Trainer):
    """The package's own model, loss and optimizer, as its trainer joins them."""

    def _build(self) -> Callable[[], object]:
        from abyssal.batch import Batch
        from abyssal.model.transformer import DeepSeekV3
        from abyssal.train.loss import losses
        from abyssal.train.machine import measure
        from abyssal.train.optim import Optim, Optimizer
        from abyssal.train.trainer import working_copy

        config = self._config
        model = working_copy(DeepSeekV3(config).initialize(), measure("bfloat16"))
        optimizer = Optimizer(model, Optim(matrices="adamw", moments="float32"))
        rows, length = self._tokens.shape[0], self._tokens.shape[1] - 1
        batch = Batch(
            self._tokens[:, :-1].flatten(),
            torch.arange(length).repeat(rows),
            torch.arange(0, rows * length + 1, length),
            self._tokens[:, 1:].flatten(),
        )

        def step() -> None:
            output = model(batch)
            head = model.lm_head.weight
            parts = losses(output, head, batch, top_k=config.num_experts_per_tok, balance=False)
            (parts.main / len(batch.tokens)).backward()
            optimizer.collect()
            optimizer.step(RATE)

        return step


class Transformers(Trainer):
    """transformers under BF16 autocast, experts as grouped products, fused AdamW."""

    compiled = False

    def _build(self) -> Callable[[], object]:
        from transformers import AutoModelForCausalLM, DeepseekV3Config

        published = self._config.to_dict()
        config = DeepseekV3Config(**{k: v for k, v in published.items() if k != "architectures"})
        config.use_cache = False
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, experts_implementation="grouped_mm"
        ).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
        inputs = self._tokens[:, :-1].contiguous()
        forward = torch.compile(model) if self.compiled else model

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = forward(input_ids=inputs, labels=inputs, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


class Compiled(Transformers):
    """The same through torch.compile."""

    compiled = True
