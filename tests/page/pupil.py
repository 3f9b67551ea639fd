"""A small model that knows a few answers by heart: thoughts, text and calls of a tool.

What the page shows of it came the whole way: prompt, engine, tokens, parser, stream. It is trained
where it is needed, in some seconds, until every token of its lessons is the likeliest.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F

from abyssal.batch import IGNORE, Batch
from abyssal.config import ModelConfig
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import Message, ToolCall, render
from abyssal.tokenizer.tools import Tool, tools_parts
from tests.page.hostile import HOSTILE

TOOL = Tool("say")
STEPS = 400  # at most; about 70 are enough


class Lesson(NamedTuple):
    """What is said, and what the model answers. With a call it is told of the tool."""

    asked: str
    answer: str
    thought: str | None = None
    call: ToolCall | None = None
    result: tuple[str, str] | None = None  # of the call, and what the model says then

    @property
    def conversations(self) -> list[list[Message]]:
        """What to learn: each up to where the model ends."""
        user = Message("user", self.asked)
        calls = () if self.call is None else (self.call,)
        told = [user, Message("assistant", self.answer, reasoning=self.thought, tool_calls=calls)]
        if self.result is None:
            return [told]
        first = Message("assistant", self.answer, tool_calls=calls)  # thoughts are not sent back
        output, then = self.result
        return [told, [user, first, Message("tool", output), Message("assistant", then)]]


# Each text of the corpus as a thought, as an answer, as a name of a function and its arguments.
PARROT = [
    Lesson(f"{n:02d}", text, text, ToolCall(text.strip(), json.dumps({"text": text})))
    for n, text in enumerate(HOSTILE)
]

MARKDOWN = """## Depth

It is $d = \\frac{p}{\\rho g}$ deep:

$$\\int_0^d \\rho g\\,dz = p$$

| sea | m |
| --- | --- |
| المتوسط | 1,500 |

```python
def depth(p):
    return p / 9.81
```

> **quoted** and [linked](https://example.com)
"""
DEEP = Lesson("deep", MARKDOWN, "Pressure is $p = \\rho g d$.")
SUM = Lesson("sum", "", call=ToolCall("say", '{"text": "6 * 7"}'), result=("42", "It is 42."))
FORM = Lesson("form", '{"depth": [1, 2]}')
LESSONS = [*PARROT, DEEP, SUM, FORM]


def train(lessons: Sequence[Lesson], folder: Path) -> Path:
    """A folder with a model that gives these answers, greedily; and the curve of its training.

    A lesson with a thought is asked with thinking, one with a call with the tool declared.
    """
    texts = [lesson.asked for lesson in lessons] * 3
    texts += [text for lesson in lessons for text in _said(lesson)]
    texts += [part.content for part in tools_parts([TOOL], "v3.1") if not part.is_control]
    tokenizer = Tokenizer.train([text + " " for text in texts] * 3, 900)
    model = DeepSeekV3(_config(tokenizer.vocab_size)).initialize(torch.Generator().manual_seed(0))
    batch = _batch(lessons, tokenizer)
    losses = _learn(model, batch)
    folder.mkdir()
    model.save(folder)
    tokenizer.save(folder, "v3.1")
    rows: list[Mapping[str, object]] = [
        {"kind": "step", "step": step, "tokens": len(batch.tokens) * step, "loss": loss}
        for step, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = f"<!doctype html><style>p {{ color: green }}</style><p>{len(losses)} steps</p>"
    (folder / "report.html").write_text(report)
    return folder


def _said(lesson: Lesson) -> list[str]:
    call = [] if lesson.call is None else [lesson.call.name, lesson.call.arguments]
    return [lesson.answer, lesson.thought or "", *call, *(lesson.result or ())]


def _config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size, hidden_size=64, num_hidden_layers=1, first_k_dense_replace=1,
        intermediate_size=128, num_nextn_predict_layers=0, num_attention_heads=4,
        q_lora_rank=None, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16,
        v_head_dim=16, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, max_position_embeddings=1024, initializer_range=0.05,
    )  # fmt: skip


def _batch(lessons: Sequence[Lesson], tokenizer: Tokenizer) -> Batch:
    tokens, labels = [], []
    for lesson in lessons:
        tools = [TOOL] if lesson.call else []
        for messages in lesson.conversations:
            told = render(messages, tokenizer, "v3.1", lesson.thought is not None, False, tools)
            scored = zip(told.tokens[1:], told.trained[1:], strict=True)
            tokens.append(told.tokens[:-1])
            labels.append([token if mine else IGNORE for token, mine in scored])
    return Batch.from_sequences(tokens, labels)


def _learn(model: DeepSeekV3, batch: Batch) -> list[float]:
    """The loss of each step, until nothing is wrong."""
    assert batch.labels is not None
    scored = batch.labels != IGNORE
    labels = batch.labels[scored]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    losses: list[float] = []
    for _ in range(STEPS):
        logits = model.lm_head(model(batch).hidden[scored]).float()
        loss = F.cross_entropy(logits, labels)
        losses.append(loss.item())
        if bool((logits.argmax(-1) == labels).all()):
            return losses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"{STEPS} steps were not enough; the loss is {losses[-1]:.3f}")
