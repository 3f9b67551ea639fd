"""Stage: shards -> base model, from random weights or onward from a folder (long context).

DeepSeek-V3 (arXiv 2412.19437), section 4. Documents are packed end to end without a mask between
them, a tenth of them rearranged to fill in the middle.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from abyssal.config import ModelConfig
from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train.machine import Machine
from abyssal.train.run import Data, Run
from abyssal.train.text import TextObjective
from abyssal.train.trainer import Trainer, working_copy


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain(Run):
    """A run that makes a base model."""

    model: ModelConfig
    data: Data
    init: Path | None = None  # a folder to go on from, under the (changed) positions of `model`
    output_scale: float = 1.0  # of o_proj and down_proj at random initialization


def begin(run: Pretrain, tokenizer: Tokenizer, machine: Machine) -> Trainer:
    """The loop before its first step."""
    model = working_copy(build(run, tokenizer), machine)
    return Trainer(run, TextObjective(run, run.data, model, tokenizer), machine)


def build(run: Pretrain, tokenizer: Tokenizer) -> DeepSeekV3:
    """The model as it stands before the first step."""
    if tokenizer.vocab_size > run.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={run.model.vocab_size}, but the tokenizer {run.tokenizer} has "
            f"{tokenizer.vocab_size} tokens; raise vocab_size or train a smaller tokenizer"
        )
    if run.batch.seq_len > run.model.max_position_embeddings:
        raise ConfigError(
            f"batch.seq_len={run.batch.seq_len}, but model.max_position_embeddings="
            f"{run.model.max_position_embeddings}; lower one or raise the other"
        )
    if run.init is None:
        generator = torch.Generator().manual_seed(run.seed)
        return DeepSeekV3(run.model).initialize(generator, output_scale=run.output_scale)
    return DeepSeekV3.load(run.init, run.model)
