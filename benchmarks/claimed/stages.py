"""An eight-stage pipeline run in a schedule's order, in one process: gradients as without it.

Every rank has modules of its own, of a stage for each way that it serves, and only does what its
tasks say, in their order: forward, the inputs' gradient, the weights'. What a rank needs from its
neighbors it finds in what they have left, or the run fails.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abyssal.batch import Batch
from abyssal.config import PRESETS
from abyssal.model.attention import Span
from abyssal.model.rope import cos_sin
from abyssal.model.transformer import DeepSeekV3
from abyssal.plan.pipeline import Times, simulate
from abyssal.plan.schedules import SCHEDULES, Chunk, Schedule
from claimed.row import Row, holds

STAGES, MICRO_BATCHES, LENGTH = 8, 16, 12  # stages, micro-batches, tokens of each
CONFIG = replace(
    PRESETS["tiny"], vocab_size=64, hidden_size=32, num_hidden_layers=STAGES, intermediate_size=48,
    moe_intermediate_size=16, num_attention_heads=2, kv_lora_rank=16, qk_rope_head_dim=8,
    qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, initializer_range=0.2,
)  # fmt: skip


def pipelined() -> Iterator[Row]:
    """Every schedule, against one backward through the whole model."""
    generator = torch.Generator().manual_seed(0)
    model = DeepSeekV3(CONFIG).initialize(generator)
    texts = torch.randint(CONFIG.vocab_size, (MICRO_BATCHES, LENGTH + 1), generator=generator)
    whole = _gradients_of(model, texts)
    for schedule in SCHEDULES:
        found = _Pipeline(model, texts, schedule).gradients()
        same = all(torch.allclose(found[name], whole[name], atol=1e-5) for name in whole)
        claim = f"{schedule}, gradients of {STAGES} stages"
        yield holds(claim, same and found.keys() == whole.keys(), "as without a pipeline")


class _Stage(nn.Module):
    """One block; the first embeds before it, the last scores after it."""

    def __init__(self, model: DeepSeekV3, stage: int):
        super().__init__()
        self.layers = nn.ModuleDict({str(stage): model.layers[stage]})
        if stage == 0:
            self.embed_tokens = model.embed_tokens
        if stage == STAGES - 1:
            self.norm, self.lm_head = model.norm, model.lm_head

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (T, D), or tokens (T + 1) at the first -> (T, D), or the loss at the last."""
        positions = torch.arange(len(tokens) - 1)
        cu_seqlens = torch.tensor([0, len(positions)], dtype=torch.int32)
        span = Span(*cos_sin(CONFIG, positions), cu_seqlens, None)
        x = self.embed_tokens(tokens[:-1]) if hasattr(self, "embed_tokens") else x
        (block,) = self.layers.values()
        x, _ = block(x, span)
        if not hasattr(self, "norm"):
            return x
        return F.cross_entropy(self.lm_head(self.norm(x)), tokens[1:], reduction="sum")


class _Pipeline:
    """Ranks that pass micro-batches on; `left` is what chunks left for their neighbors."""

    def __init__(self, model: DeepSeekV3, texts: Tensor, schedule: Schedule):
        self.texts = texts
        self.timeline = simulate(schedule, STAGES, MICRO_BATCHES, Times())
        self.pipes = 2 if schedule == "dualpipe" else 1
        kept = [{(c.pipe, c.stage) for c in _chunks(spans)} for spans in self.timeline.ranks]
        stages = [_Stage(model, stage) for stage in range(STAGES)]
        self.ranks = [{key: copy.deepcopy(stages[key[1]]) for key in keys} for keys in kept]
        self.outputs: dict[Chunk, Tensor] = {}
        self.inputs: dict[Chunk, Tensor] = {}
        self.slopes: dict[Chunk, Tensor] = {}  # gradients of chunks' inputs

    def gradients(self) -> dict[str, Tensor]:
        """Run all tasks -> the sum of every parameter's gradients over all ranks that hold it."""
        spans = [(span.start, rank, span.task) for rank, spans in enumerate(self.timeline.ranks)
                 for span in spans]  # fmt: skip
        for _, rank, task in sorted(spans, key=lambda span: span[:2]):
            if task.forward:
                self._forward(rank, task.forward)
            if task.backward and task.kind != "W":
                self._inputs(task.backward)
            if task.backward and task.kind != "I":
                self._weights(rank, task.backward)
        found: dict[str, Tensor] = {}
        for held in self.ranks:
            for stage in held.values():
                for name, parameter in stage.named_parameters():
                    if parameter.grad is not None:
                        found[name] = found.get(name, 0) + parameter.grad
        return found

    def _forward(self, rank: int, chunk: Chunk) -> None:
        x = torch.zeros(())
        if chunk.stage:
            x = self.outputs[chunk._replace(stage=chunk.stage - 1)].detach()
        self.inputs[chunk] = x.requires_grad_()
        stage = self.ranks[rank][chunk.pipe, chunk.stage]
        self.outputs[chunk] = stage(x, self.texts[self.pipes * chunk.micro + chunk.pipe])

    def _inputs(self, chunk: Chunk) -> None:
        if chunk.stage:
            slope = self._slope(chunk)
            self.slopes[chunk] = torch.autograd.grad(
                self.outputs[chunk], self.inputs[chunk], slope, retain_graph=True
            )[0]

    def _weights(self, rank: int, chunk: Chunk) -> None:
        parameters = list(self.ranks[rank][chunk.pipe, chunk.stage].parameters())
        found = torch.autograd.grad(
            self.outputs.pop(chunk), parameters, self._slope(chunk), allow_unused=True
        )
        for parameter, grad in zip(parameters, found, strict=True):
            if grad is not None:  # an expert that no token met has none
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad

    def _slope(self, chunk: Chunk) -> Tensor:
        """The gradient of a chunk's output: what the stage behind it left."""
        if chunk.stage == STAGES - 1:
            return torch.ones(())
        return self.slopes[chunk._replace(stage=chunk.stage + 1)]


def _chunks(spans: Sequence) -> Iterator[Chunk]:
    for span in spans:
        yield from (chunk for chunk in (span.task.forward, span.task.backward) if chunk)


def _gradients_of(model: DeepSeekV3, texts: Tensor) -> dict[str, Tensor]:
    """By one backward through all blocks."""
    model.zero_grad()
    for text in texts:
        scores = model.logits(Batch.from_sequences([text[:-1].tolist()]))
        F.cross_entropy(scores, text[1:], reduction="sum").backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
