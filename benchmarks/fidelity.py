"""What native passes in fewer bits change of a trained model's answers, against torch in float32.

agreement      how often the likeliest next token is the same, along float32's own greedy text
bits per byte  of the demo's held-out stories
texts          greedy texts of 200 prompts that INT8 latents leave as they are

python benchmarks/fidelity.py out/demo/model
python benchmarks/fidelity.py out/demo/model --prompts 50 --tokens 32
"""

import argparse
import math
from collections.abc import Sequence

import torch

from abyssal.batch import Batch
from abyssal.data import corpus
from abyssal.engine.cache import PagedCache
from abyssal.engine.llm import LLM
from abyssal.engine.native import NativeRunner, stack_of
from abyssal.engine.options import EngineOptions
from abyssal.engine.pages import PAGE
from abyssal.engine.runner import Reading
from abyssal.evals.harness import bits_per_byte
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer

SCORED = 150  # held-out stories


class Passes:
    """A packed model that reads one sequence at a time, and forgets it."""

    def __init__(self, model: DeepSeekV3, dtype: torch.dtype):
        config = model.config
        pages = config.max_position_embeddings // PAGE + 2
        layers = config.num_hidden_layers + 1
        cache = PagedCache(config, pages, dtype, torch.device("cpu"), num_layers=layers)
        self._pages = list(range(1, pages))
        self._runner = NativeRunner(stack_of(model, config), cache)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Scores (T, W) of the token after each of these, decoded one by one."""
        steps = [
            self._runner.read([Reading([token], self._pages, place)]).hidden
            for place, token in enumerate(tokens)
        ]
        return self._runner.logits(torch.cat(steps))


def main() -> None:
    """Print the three comparisons."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="a trained model with its tokenizer")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64, help="of each greedy text")
    args = parser.parse_args()
    report(args.folder, corpus.stories("valid"), args.prompts, args.tokens)


@torch.inference_mode()
def report(folder: str, stories: Sequence[str], prompts: int, tokens: int) -> None:
    """Measure one folder."""
    tokenizer = Tokenizer.load(folder)
    exact = DeepSeekV3.load(folder).float().requires_grad_(False)
    stored = DeepSeekV3.load(folder).to(torch.bfloat16).requires_grad_(False)
    for gate, own in zip(stored.gates(), exact.gates(), strict=True):
        gate.e_score_correction_bias = own.e_score_correction_bias
    passes = Passes(stored, torch.bfloat16)
    text = tokenizer.encode(stories[0])[:8]
    while len(text) < 8 + 256:
        text.append(int(exact.logits(_batch(text))[-1].argmax()))
    same = passes.logits(text).argmax(-1) == exact.logits(_batch(text)).argmax(-1)
    print(f"agreement: {int(same[7:].sum())} of {len(same[7:])} greedy steps")
    bits(exact, passes, tokenizer, stories[:SCORED])
    kept(folder, tokenizer, [tokenizer.encode(story)[:12] for story in stories[:prompts]], tokens)


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


def kept(folder: str, tokenizer: Tokenizer, prompts: list[list[int]], tokens: int) -> None:
    """Greedy texts over BF16 and over INT8 latents."""
    answers = [
        [
            answer.tokens
            for answer in LLM(
                folder, tokenizer, dtype=torch.bfloat16, options=EngineOptions(cache_dtype=kind)
            ).generate(prompts, max_tokens=tokens, temperature=0)
        ]
        for kind in ("bfloat16", "int8")
    ]
    for length in (8, 16, 32, tokens):
        same = sum(one[:length] == other[:length] for one, other in zip(*answers, strict=True))
        print(f"texts: {same} of {len(prompts)} unchanged by INT8 latents in {length} tokens")


def _batch(tokens: Sequence[int]) -> Batch:
    return Batch.from_sequences([list(tokens)])


if __name__ == "__main__":
    main()
