"""What native passes in fewer bits change of trained models, against torch in float32.

agreement      how often the likeliest next token is the same, along float32's own greedy text
bits per byte  of the demo's held-out stories
texts          greedy texts over INT8, BF16 and float32 latents: how many of 200 are still the same
               after 8 to 64 tokens. The base model goes on with 12 tokens of held-out stories; the
               chat model answers requests for held-out stories and small talk, to its own end

Where BF16 latents differ from float32 ones is how easily these texts change at all.

python benchmarks/fidelity.py out/demo
python benchmarks/fidelity.py out/demo --prompts 50 --tokens 32
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path

import torch

from abyssal.batch import Batch
from abyssal.data import corpus
from abyssal.data.chat_mixture import finetuning_chats
from abyssal.engine.cache import PagedCache
from abyssal.engine.native import NativeRunner, stack_of
from abyssal.engine.options import EngineOptions
from abyssal.engine.pages import PAGE
from abyssal.engine.runner import Reading
from abyssal.evals.harness import bits_per_byte
from abyssal.kernels.stack import Stack
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.tokenizer.chat import render

SCORED = 150  # held-out stories
TOGETHER = EngineOptions().max_running
LENGTHS = (8, 12, 16, 24, 32, 48, 64)
LONGEST = 400  # tokens of an answer
SEED = 77  # of conversations; the demo's is 1
KINDS = {"INT8": torch.int8, "BF16": torch.bfloat16, "float32": torch.float32}

Texts = list[list[int]]


class Passes:
    """A packed model with latents of a kind, over some sequences at a time."""

    def __init__(self, stack: Stack, dtype: torch.dtype, count: int = 1):
        config = stack.config
        each = config.max_position_embeddings // PAGE + 1
        layers = config.num_hidden_layers + 1
        cache = PagedCache(config, count * each + 1, dtype, torch.device("cpu"), num_layers=layers)
        self._pages = [list(range(1 + i * each, 1 + (i + 1) * each)) for i in range(count)]
        self._runner = NativeRunner(stack, cache)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Scores (T, W) of the token after each of these, decoded one by one."""
        steps = [
            self._runner.read([Reading([token], self._pages[0], place)]).hidden
            for place, token in enumerate(tokens)
        ]
        return self._runner.logits(torch.cat(steps))

    def greedy(self, prompts: Texts, most: int, end: int | None) -> Texts:
        """What follows each prompt: the likeliest tokens, `most` of them or until `end`."""
        out: Texts = [[] for _ in prompts]
        new = dict(enumerate(prompts))
        while new:
            readings = []
            for i, tokens in new.items():
                start = len(prompts[i]) + len(out[i]) - 1 if out[i] else 0
                readings.append(Reading(tokens, self._pages[i], start))
            ends = accumulate(len(reading.tokens) for reading in readings)
            logits = self._runner.read(readings, [end - 1 for end in ends]).logits
            drawn = logits.argmax(-1).tolist()
            for i, token in zip(new, drawn, strict=True):
                out[i].append(token)
            new = {i: [out[i][-1]] for i in new if len(out[i]) < most and out[i][-1] != end}
        return out


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a demo, with its base/ and model/")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64, help="of each text of the base model")
    args = parser.parse_args()
    report(args.folder, args.prompts, args.tokens)


@torch.inference_mode()
def report(folder: Path, prompts: int, tokens: int) -> None:
    """Measure the two models of a demo."""
    stories = corpus.stories("valid")
    tokenizer = Tokenizer.load(folder / "model")
    exact = DeepSeekV3.load(folder / "model").float().requires_grad_(False)
    chat, base = packed(folder / "model"), packed(folder / "base")
    passes = Passes(chat, torch.bfloat16)
    text = tokenizer.encode(stories[0])[:8]
    while len(text) < 8 + 256:
        text.append(int(exact.logits(_batch(text))[-1].argmax()))
    same = passes.logits(text).argmax(-1) == exact.logits(_batch(text)).argmax(-1)
    print(f"agreement: {int(same[7:].sum())} of {len(same[7:])} greedy steps")
    bits(exact, passes, tokenizer, stories[:SCORED])
    beginnings = distinct((tokenizer.encode(story)[:12] for story in stories), prompts)
    unchanged("base model, free text", base, beginnings, tokens, None)
    asked = distinct(questions(tokenizer, stories, 4 * prompts), prompts)
    unchanged("chat model, answers", chat, asked, LONGEST, tokenizer.eos_token_id)


def packed(folder: Path) -> Stack:
    """A model in BF16, its balance biases in the precision they have."""
    stored = DeepSeekV3.load(folder).to(torch.bfloat16).requires_grad_(False)
    for gate, own in zip(stored.gates(), DeepSeekV3.load(folder).gates(), strict=True):
        gate.e_score_correction_bias = own.e_score_correction_bias
    return stack_of(stored, stored.config)


def bits(exact: DeepSeekV3, passes: Passes, tokenizer: Tokenizer, stories: Sequence[str]) -> None:
    """Bits per byte of both."""
    limit = exact.config.max_position_embeddings
    stories = [story for story in stories if len(tokenizer.encode(story)) < limit]
    reference = bits_per_byte(exact, tokenizer, stories).bits_per_byte
    total = 0.0
    for story in stories:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(story)]
        scores = passes.logits(ids[:-1]).log_softmax(-1)
        total -= float(scores.gather(-1, torch.tensor(ids[1:])[:, None]).double().sum())
    native = total / math.log(2) / sum(len(story.encode()) for story in stories)
    change = 100 * (native / reference - 1)
    print(f"bits per byte: {native:.5f} native BF16, {reference:.5f} float32 ({change:+.3f}%)")


def questions(tokenizer: Tokenizer, stories: Sequence[str], count: int) -> Iterator[list[int]]:
    """Conversations of the kind that the chat model was tuned on, up to their last question."""
    for chat in finetuning_chats(SEED, count, stories=stories):
        yield render(chat[:-1], tokenizer).tokens


def distinct(prompts: Iterator[list[int]], count: int) -> Texts:
    """The first of them, each once: equal prompts would count one text several times."""
    return [list(prompt) for prompt in islice(dict.fromkeys(map(tuple, prompts)), count)]


def unchanged(what: str, stack: Stack, prompts: Texts, most: int, end: int | None) -> None:
    """Texts over latents of each kind, and how many pairs of them are equal, by length."""
    texts: dict[str, Texts] = {}
    for kind, dtype in KINDS.items():
        passes = Passes(stack, dtype, TOGETHER)
        parts = [prompts[i : i + TOGETHER] for i in range(0, len(prompts), TOGETHER)]
        texts[kind] = [text for part in parts for text in passes.greedy(part, most, end)]
    lengths = [n for n in LENGTHS if n <= most] + ([most] if end is not None else [])
    mean = sum(map(len, texts["float32"])) / len(prompts)
    print(f"\n{what}: {len(prompts)} prompts, {mean:.0f} tokens on average; unchanged, in percent")
    heads = [*map(str, lengths)] if end is None else [*map(str, lengths[:-1]), "end"]
    print(f"{'tokens':18}" + "".join(f"{head:>7}" for head in heads))
    for one, other in (("INT8", "BF16"), ("INT8", "float32"), ("BF16", "float32")):
        pairs = list(zip(texts[one], texts[other], strict=True))
        shares = [sum(a[:n] == b[:n] for a, b in pairs) / len(pairs) for n in lengths]
        print(f"{f'{one}, {other}':18}" + "".join(f"{100 * share:7.1f}" for share in shares))


def _batch(tokens: Sequence[int]) -> Batch:
    return Batch.from_sequences([list(tokens)])


if __name__ == "__main__":
    main()
