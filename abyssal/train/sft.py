"""Stage: conversations -> chat model.

DeepSeek-V3 (arXiv 2412.19437), section 5.1. Conversations are packed, none sees another, and only
what the assistant wrote is learned: the shards' masks say which tokens those are.
"""

from dataclasses import dataclass

from abyssal.errors import ConfigError
from abyssal.model.transformer import DeepSeekV3
from abyssal.tokenizer.bpe import Tokenizer
from abyssal.train import lora
from abyssal.train.machine import Machine
from abyssal.train.run import Data, Tuning
from abyssal.train.text import TextObjective
from abyssal.train.trainer import Trainer, working_copy


@dataclass(frozen=True, kw_only=True, slots=True)
class SFT(Tuning):
    """A run that teaches a base model to answer."""

    data: Data

    def __post_init__(self) -> None:
        Tuning.__post_init__(self)
        if not self.data.isolate or self.data.fim_rate:
            raise ConfigError(
                f"data.isolate={self.data.isolate} and fim_rate={self.data.fim_rate}, but the sft "
                "stage "
                "needs isolate = true and fim_rate = 0: conversations must not see each other"
            )


def begin(run: SFT, tokenizer: Tokenizer, machine: Machine) -> Trainer:
    """The loop before its first step."""
    model = start(run, tokenizer, machine)
    return Trainer(run, TextObjective(run, run.data, model, tokenizer), machine)


def start(run: Tuning, tokenizer: Tokenizer, machine: Machine) -> DeepSeekV3:
    """The working copy of the model that any tuning starts from, with adapters if it has some."""
    model = DeepSeekV3.load(run.init)
    check_fit(run, model, tokenizer)
    model = working_copy(model, machine)
    if run.lora is not None:
        lora.attach(model, run.lora, run.seed)
    return model


def check_fit(run: Tuning, model: DeepSeekV3, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer or a length that the model does not have."""
    config = model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{run.init} has vocab_size={config.vocab_size}, but the tokenizer {run.tokenizer} has "
            f"{tokenizer.vocab_size} tokens; use the tokenizer the base model was trained with"
        )
    if run.batch.seq_len > config.max_position_embeddings:
        raise ConfigError(
            f"batch.seq_len={run.batch.seq_len}, but {run.init} reaches "
            f"max_position_embeddings={config.max_position_embeddings}; lower seq_len"
        )
